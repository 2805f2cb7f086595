// Streamed data sets: whose batch is under way, and their positions in checkpoints.
#include "accelerator_impl.hpp"

#include <troupe/rank_datasets.hpp>

#include <ATen/ops/cat.h>

#include <algorithm>

namespace troupe {

namespace {

constexpr const char* key_prefix = "dataset.";

}  // namespace

void Accelerator::prepare_stream(std::shared_ptr<TrainingStream> stream) { impl_->adopt(std::move(stream)); }

void Accelerator::Impl::adopt(std::shared_ptr<TrainingStream> stream) {
  for (const auto& known : streams) {
    if (known.stream == stream) return;
    if (known.stream->name() == stream->name()) {
      throw Failure{Errc::InvalidArgument, "prepare: two data iterators are called '" + stream->name() + "'; checkpoints know them by their names"};
    }
  }
  const auto id = boundary.next_loader++;
  stream->set_asked([self = std::weak_ptr{self}, id](bool more) {
    if (const auto alive = self.lock()) (*alive)->asked(id, more);
  });
  streams.push_back({stream, id});
  const auto waiting = waiting_positions.find(stream->name());
  if (waiting == waiting_positions.end()) return;
  stream->resume(waiting->second);
  waiting_positions.erase(waiting);
}

void Accelerator::Impl::adopt_context_streams() {
  auto* datasets = context.datasets();
  if (!datasets) return;
  for (const auto& [name, stream] : datasets->streams()) adopt(stream);
  datasets->set_opened([self = std::weak_ptr{self}](const std::shared_ptr<TrainingStream>& stream) {
    if (const auto alive = self.lock()) (*alive)->adopt(stream);
  });
}

void Accelerator::Impl::note_asked(int id, bool more) {
  std::erase(asked_order, id);
  if (more) asked_order.push_back(id);
}

const TrainingStream* Accelerator::Impl::padded_stream() const {
  for (auto id = asked_order.rbegin(); id != asked_order.rend(); ++id) {
    const auto found = std::find_if(streams.begin(), streams.end(), [&](const auto& s) { return s.id == *id; });
    if (found == streams.end()) return nullptr;  // a loader's batch is under way
    if (found->stream->real_rows()) return found->stream.get();
  }
  return nullptr;
}

at::Tensor Accelerator::Impl::without_padding(const at::Tensor& all, std::int64_t rows_each, std::int64_t real_rows) {
  std::vector<std::int64_t> real(static_cast<std::size_t>(communicator.size()));
  communicator.all_gather({&real_rows, sizeof real_rows, DType::I64}, {real.data(), real.size() * sizeof real_rows, DType::I64}).wait().or_throw();
  if (std::all_of(real.begin(), real.end(), [&](std::int64_t rows) { return rows >= rows_each; })) return all;
  std::vector<at::Tensor> kept;
  for (std::size_t r = 0; r < real.size(); ++r) {
    kept.push_back(all.narrow(0, static_cast<std::int64_t>(r) * rows_each, std::min(real[r], rows_each)));
  }
  return at::cat(kept);
}

void Accelerator::Impl::save_streams(std::map<std::string, std::string>& saved) const {
  for (const auto& [name, positions] : waiting_positions) {
    // Not opened yet since it was loaded: still where it was, for the same ranks.
    const auto rank = static_cast<std::size_t>(communicator.rank());
    if (positions.size() == static_cast<std::size_t>(communicator.size())) saved[key_prefix + name] = positions[rank];
  }
  for (const auto& s : streams) saved[key_prefix + s.stream->name()] = s.stream->position();
}

void Accelerator::Impl::find_missing_streams(const RankState& first, LoadReport& report) const {
  for (const auto& s : streams) {
    if (!first.objects.contains(key_prefix + s.stream->name())) report.missing.push_back("the position of data set " + s.stream->name());
  }
}

void Accelerator::Impl::load_streams(const CheckpointReader& reader, int num_ranks) {
  waiting_positions.clear();
  for (const auto& [key, unused] : reader.rank_state(0).objects) {
    if (!key.starts_with(key_prefix)) continue;
    const auto name = key.substr(std::string_view{key_prefix}.size());
    std::vector<std::string> positions;
    for (int r = 0; r < num_ranks; ++r) {
      const auto& saved = reader.rank_state(r).objects;
      const auto found = saved.find(key);
      if (found == saved.end()) throw Failure{Errc::FileCorrupt, "load_state: rank " + std::to_string(r) + " saved no position of data set " + name};
      positions.push_back(found->second);
    }
    const auto known = std::find_if(streams.begin(), streams.end(), [&](const auto& s) { return s.stream->name() == name; });
    if (known != streams.end()) known->stream->resume(positions);
    else waiting_positions[name] = std::move(positions);
  }
}

}  // namespace troupe

#include "stream_reader.hpp"

#include <algorithm>
#include <troupe/errors.hpp>
#include <utility>

#include "batch_loading.hpp"

namespace troupe {

StreamReader::StreamReader(std::shared_ptr<const IterableDataset> dataset, const LoaderPosition& start, const StreamShare& share)
    : dataset_(std::move(dataset)), epoch_(start.epoch), share_(share), number_(start.num_batches), ahead_(start.ahead) {
  share_.sharding.first = start.first_sample;
  const auto begin = start.first_sample + start.num_batches * total_batch_size(share_.sharding);
  pass_ = dataset_->begin(epoch_, start.stream);
  if (!pass_) throw Failure{Errc::InvalidArgument, "DataLoader: the iterable data set began no pass (a null pointer)"};
  if (start.stream.empty()) skip_to(begin);
  else at_ = begin;
}

void StreamReader::skip_to(std::int64_t position) {
  if (ended_ || position <= at_) return;
  const auto wanted = position - at_;
  const auto skipped = std::clamp<std::int64_t>(pass_->skip(wanted), 0, wanted);
  at_ += skipped;
  ended_ = skipped < wanted;
}

void StreamReader::read(std::int64_t count, BatchJob& job) {
  for (std::int64_t i = 0; i < count && !ended_; ++i) {
    auto sample = read_sample(*pass_, at_);
    if (!sample) {
      ended_ = true;
      return;
    }
    job.samples.push_back(std::move(*sample));
    job.meta.indices.push_back(at_++);
  }
}

void StreamReader::fill_up(std::int64_t from, std::int64_t count, BatchJob& job) {
  const auto length = at_;
  auto at = length;  // of `again`
  std::unique_ptr<IterableDataset::Pass> again;
  for (auto position = from; position < from + count; ++position, ++at) {
    const auto wanted = position % length;
    if (!again || at != wanted) {
      again = dataset_->begin(epoch_, {});
      at = again ? again->skip(wanted) : -1;
    }
    auto sample = at == wanted ? read_sample(*again, at) : std::nullopt;
    if (!sample) {
      throw Failure{Errc::DataMalformed, "sample " + std::to_string(wanted) + " is needed again to fill up the last batch, and is not there any more: "
                                         "an iterable data set must give the same samples at every begin() of an epoch (or set drop_last)"};
    }
    job.samples.push_back(std::move(*sample));
    job.meta.indices.push_back(wanted);
  }
}

std::optional<BatchJob> StreamReader::next() {
  const auto& s = share_.sharding;
  const auto total = total_batch_size(s), mine = total / s.world_size;
  for (;; ++number_) {
    const bool others = number_ % share_.num_workers != share_.worker;
    if (!others && std::find(ahead_.begin(), ahead_.end(), number_) == ahead_.end()) break;
    if (ended_ && s.first + number_ * total >= at_) return std::nullopt;
  }
  const auto begin = s.first + number_ * total, first = begin + s.rank * mine;
  BatchJob job;
  job.meta.number = number_++;
  skip_to(first);
  read(mine, job);
  skip_to(begin + total);
  const auto real = std::min(total, at_ - begin);
  if (real <= 0 || (real < total && s.drop_last)) return std::nullopt;
  job.meta.remainder = s.drop_last ? -1 : real % total;
  job.meta.samples_after = begin + real;
  if (real < total) {
    const auto have = std::ssize(job.samples);
    const auto rows = s.world_size > 1 ? mine : (have + share_.round_to - 1) / share_.round_to * share_.round_to;
    fill_up(first + have, rows - have, job);
  } else if (!ended_) {
    job.meta.stream = pass_->position();
  }
  return job;
}

}  // namespace troupe

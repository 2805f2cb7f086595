#include "part_plan.hpp"

#include <io/stream_copy.hpp>

#include <troupe/errors.hpp>

#include <algorithm>

namespace troupe::detail {

namespace {

constexpr std::uint64_t kCopyAtOnce = 256 << 10;  // digested, then copied, while it is in the processor's own cache

[[noreturn]] void refuse(const CheckpointPart& part, const std::string& text) {
  throw Failure{Errc::InvalidArgument, "checkpoint part of rank " + std::to_string(part.rank) + ": " + text};
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span{text}); }

std::string range_text(std::uint64_t begin, std::uint64_t end) { return "bytes " + std::to_string(begin) + " to " + std::to_string(end); }

void check_range(const CheckpointPart& part, const SharedTensorFile& file, const TensorRange& range, const Layout& layout) {
  if (range.tensor >= layout.places.size()) {
    refuse(part, "'" + file.stem + "' has " + std::to_string(layout.places.size()) + " tensors; there is no number " +
                     std::to_string(range.tensor));
  }
  const auto bytes = layout.places[range.tensor].bytes;
  if (range.begin > bytes || range.bytes.size() > bytes - range.begin) {
    refuse(part, range_text(range.begin, range.begin + range.bytes.size()) + " of tensor '" + file.tensors[range.tensor].name + "' of '" +
                     file.stem + "', which has " + std::to_string(bytes));
  }
}

void check_overlaps(const CheckpointPart& part, const PartPlan::PlannedFile& file) {
  for (std::size_t i = 1; i < file.pieces.size(); ++i) {
    if (file.pieces[i].begin >= file.pieces[i - 1].end()) continue;
    refuse(part, range_text(file.pieces[i].begin, file.pieces[i - 1].end()) + " of " + file.name + " are given twice");
  }
}

void plan_file(const CheckpointPart& part, const SharedTensorFile& file, const Layout& layout, PartPlan& plan) {
  std::vector<PartPlan::PlannedFile> planned;
  for (const auto& laid_out : layout.files) {
    planned.push_back({laid_out.name, laid_out.size, {}, {}});
    if (part.rank == 0) planned.back().pieces.push_back({0, bytes_of(laid_out.header)});
  }
  for (const auto& range : file.mine) {
    check_range(part, file, range, layout);
    if (range.bytes.empty()) continue;
    const auto& place = layout.places[range.tensor];
    planned[place.file].pieces.push_back({place.begin + range.begin, range.bytes});
    plan.tensor_bytes += range.bytes.size();
  }
  if (part.rank == 0 && !layout.index_name.empty())
    planned.push_back({layout.index_name, layout.index.size(), {{0, bytes_of(layout.index)}}, {}});
  for (auto& one : planned) {
    if (one.pieces.empty()) continue;
    std::ranges::sort(one.pieces, {}, &PartPlan::Piece::begin);
    check_overlaps(part, one);
    plan.files.push_back(std::move(one));
  }
}

void record_tensors(const CheckpointPart& part, PartPlan& plan) {
  std::uint32_t first = 0;  // rank 0 writes to every file, in order
  for (std::size_t f = 0; f < part.files.size(); ++f) {
    const auto& layout = plan.layouts[f];
    auto& tensors = plan.record.tensors;
    const auto begin = static_cast<std::ptrdiff_t>(tensors.size());
    for (std::size_t i = 0; i < layout.places.size(); ++i) {
      const auto& spec = part.files[f].tensors[i];
      const auto& place = layout.places[i];
      tensors.push_back({part.files[f].stem, spec.name, spec.dtype, spec.shape, first + place.file, place.begin, place.bytes});
    }
    std::sort(tensors.begin() + begin, tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
      return std::tie(a.file, a.begin, a.name) < std::tie(b.file, b.begin, b.name);
    });
    first += static_cast<std::uint32_t>(layout.files.size() + (layout.index_name.empty() ? 0 : 1));
  }
}

}  // namespace

PartPlan plan_part(const CheckpointPart& part) {
  if (part.num_writers < 1 || part.rank < 0 || part.rank >= part.num_writers) {
    refuse(part, "there are " + std::to_string(part.num_writers) + " writers, numbered from 0");
  }
  PartPlan plan;
  auto& record = plan.record;
  record.rank = part.rank;
  record.num_writers = part.num_writers;
  record.attempt = part.attempt;
  record.own = part.rank_state;
  if (part.rank == 0) record.state = part.state;
  plan.layouts.reserve(part.files.size());
  for (const auto& file : part.files) plan.layouts.push_back(lay_out(file));
  for (std::size_t f = 0; f < part.files.size(); ++f) {
    const auto& stem = part.files[f].stem;
    if (std::ranges::find(record.stems, stem, &RankFile::Stem::name) != record.stems.end()) refuse(part, "'" + stem + "' is there twice");
    record.stems.push_back({stem, plan.layouts[f].digest});
    plan_file(part, part.files[f], plan.layouts[f], plan);
  }
  if (part.rank == 0) record_tensors(part, plan);
  return plan;
}

std::vector<Run> runs_of(std::span<const PartPlan::Piece> pieces) {
  std::vector<Run> runs;
  for (std::size_t begin = 0; begin < pieces.size();) {
    auto end = begin + 1;
    while (end < pieces.size() && pieces[end].begin == pieces[end - 1].end()) ++end;
    runs.push_back({pieces.subspan(begin, end - begin)});
    begin = end;
  }
  return runs;
}

std::uint64_t segment_end(const Run& run, std::uint64_t begin) { return std::min(run.end(), (begin / segment_bytes + 1) * segment_bytes); }

void copy_and_digest(std::span<std::byte> into, std::uint64_t begin, const PartPlan::Piece*& piece, DigestStream& digest) {
  const auto end = begin + into.size();
  for (auto at = begin; at < end; piece += at == piece->end()) {
    const auto upto = std::min({end, piece->end(), at + kCopyAtOnce});
    const auto part = into.subspan(at - begin, upto - at);
    const auto* from = piece->bytes.data() + (at - piece->begin);
    digest.update({from, part.size()});
    stream_copy(part.data(), from, part.size());
    at = upto;
  }
}

}  // namespace troupe::detail

#include "digest.hpp"
#include "part_plan.hpp"

#include <io/page_buffer.hpp>

#include <troupe/errors.hpp>

#include <algorithm>
#include <cstring>

namespace troupe {

namespace detail {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kPage = File::page_bytes;
// Shorter stretches of whole pages go through the page cache: an access of their own would cost more than it moves.
constexpr std::uint64_t kDirectAtLeast = 64 << 10;

std::uint64_t up(std::uint64_t offset) { return (offset + kPage - 1) / kPage * kPage; }
std::uint64_t down(std::uint64_t offset) { return offset / kPage * kPage; }

/// Memory that segments are copied into when they do not lie in memory as in the file. Outlives the files, which wait for it.
struct Bounce {
  static constexpr std::size_t kSlot = segment_bytes + kPage;
  PageBuffer slots;
  std::span<std::byte> take(int slot, std::uint64_t offset, std::size_t bytes) {
    if (!slots.data()) slots = PageBuffer{File::num_slots * kSlot};  // together: in huge pages
    return {slots.data() + static_cast<std::size_t>(slot) * kSlot + offset % kPage, bytes};
  }
};

/// Writes one file's pieces as segments, several under way at once.
class FileWriter {
 public:
  FileWriter(File& file, Bounce& bounce) : file_(file), bounce_(bounce) {}

  void write(const Run& run) {
    auto piece = run.pieces.begin();
    for (auto begin = run.begin(); begin < run.end();) {
      const auto end = std::min(run.end(), (begin / segment_bytes + 1) * segment_bytes);
      while (piece->end() <= begin) ++piece;
      write_segment(begin, end, &*piece);
      begin = end;
    }
  }

  std::vector<Segment> finish() {
    for (int slot = 0; slot < File::num_slots; ++slot) file_.wait_write(slot);
    file_.sync();
    return std::move(segments_);
  }

 private:
  void write_segment(std::uint64_t begin, std::uint64_t end, const PartPlan::Piece* piece) {
    const int slot = next_;
    next_ = (next_ + 1) % File::num_slots;
    file_.wait_write(slot);
    const auto bytes = gather(slot, begin, end, piece);
    segments_.push_back({begin, static_cast<std::uint32_t>(bytes.size()), digest_of(bytes)});
    const auto first = up(begin), last = down(end);
    if (first >= last || last - first < kDirectAtLeast) return file_.write(bytes, begin);
    if (first > begin) file_.write(bytes.first(first - begin), begin);
    file_.begin_write(slot, bytes.subspan(first - begin, last - first), first);
    if (end > last) file_.write(bytes.subspan(last - begin), last);
  }

  std::span<const std::byte> gather(int slot, std::uint64_t begin, std::uint64_t end, const PartPlan::Piece* piece) {
    const auto size = static_cast<std::size_t>(end - begin);
    const auto* data = piece->bytes.data() + (begin - piece->begin);
    const bool in_place = reinterpret_cast<std::uintptr_t>(data) % kPage == begin % kPage;
    if (piece->end() >= end && (in_place || size < kDirectAtLeast)) return {data, size};
    const auto into = bounce_.take(slot, begin, size);
    for (auto at = begin; at < end; ++piece) {
      const auto upto = std::min(end, piece->end());
      std::memcpy(into.data() + (at - begin), piece->bytes.data() + (at - piece->begin), upto - at);
      at = upto;
    }
    return into;
  }

  File& file_;
  Bounce& bounce_;
  std::vector<Segment> segments_;
  int next_ = 0;
};

}  // namespace

void write_plan(const fs::path& directory, PartPlan& plan, FileSystem& file_system) {
  file_system.make_directories(directory);
  const auto own_file = directory / rank_file_name(plan.record.rank);
  if (file_system.kind(own_file)) file_system.remove_file(own_file);  // what it said is no longer so
  plan.record.written.clear();
  Bounce bounce;
  for (const auto& planned : plan.files) {
    const auto file = file_system.open(directory / planned.name, FileSystem::Access::Write);
    file->set_size(planned.size);
    FileWriter writer{*file, bounce};
    for (const auto& run : runs_of(planned.pieces)) writer.write(run);
    plan.record.written.push_back({planned.name, planned.size, writer.finish()});
  }
  file_system.sync_directory(directory);
  file_system.write_atomically(own_file, to_bytes(plan.record));
}

}  // namespace detail

void write_part(const std::filesystem::path& directory, const CheckpointPart& part, FileSystem& file_system) {
  auto plan = detail::plan_part(part);
  detail::write_plan(directory, plan, file_system);
}

}  // namespace troupe

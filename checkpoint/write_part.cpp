#include "digest.hpp"
#include "part_plan.hpp"

#include <io/page_buffer.hpp>

#include <troupe/errors.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

namespace troupe {

namespace detail {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kPage = File::page_bytes;
// Shorter stretches of whole pages go through the page cache: an access of their own would cost more than it moves.
constexpr std::uint64_t kDirectAtLeast = 64 << 10;
// What does not lie in memory as in the file goes by way of buffers: 16 MiB in all, as many accesses under way as keep a disk busy while
// the next is made.
constexpr std::uint64_t kAccess = 2 << 20;
constexpr int kSlots = File::num_slots;
constexpr std::size_t kSlotBytes = kAccess + 2 * kPage;

std::uint64_t up(std::uint64_t offset) { return (offset + kPage - 1) / kPage * kPage; }
std::uint64_t down(std::uint64_t offset) { return offset / kPage * kPage; }

/// Writes a part's files as segments, several under way at once, also of one file and the next. A slot is one access under way, and the
/// memory that its segment was copied into when it does not lie in memory as in the file.
class PartWriter {
 public:
  std::vector<Segment> write(std::unique_ptr<File> file, const PartPlan::PlannedFile& planned) {
    file_ = files_.emplace_back(std::move(file)).get();
    segments_.clear();
    file_->set_size(planned.size);
    auto known = planned.segments.begin();
    for (const auto& run : runs_of(planned.pieces)) {
      auto piece = run.pieces.begin();
      for (auto begin = run.begin(); begin < run.end();) {
        const auto end = segment_end(run, begin);
        while (piece->end() <= begin) ++piece;
        write_segment(begin, end, &*piece, known == planned.segments.end() ? nullptr : &*known++);
        begin = end;
      }
    }
    return std::exchange(segments_, {});
  }

  /// The files, all of whose bytes were handed to the system; not synced.
  std::vector<std::unique_ptr<File>> finish() {
    for (int slot = 0; slot < File::num_slots; ++slot) wait(slot);
    return std::move(files_);
  }

 private:
  void wait(int slot) {
    if (auto* const file = std::exchange(under_way_[static_cast<std::size_t>(slot)], nullptr)) file->wait_write(slot);
  }

  /// The segment's bytes go to the system, digested on the way unless they were before: from where they lie, when that is one place with the
  /// file's alignment, else by way of a slot's memory, an access's worth at a time.
  void write_segment(std::uint64_t begin, std::uint64_t end, const PartPlan::Piece* piece, const Segment* known) {
    const auto size = static_cast<std::size_t>(end - begin);
    const auto* data = piece->bytes.data() + (begin - piece->begin);
    const bool in_place = reinterpret_cast<std::uintptr_t>(data) % kPage == begin % kPage;
    if (piece->end() >= end && (in_place || size < kDirectAtLeast)) {
      segments_.push_back(known ? *known : Segment{begin, static_cast<std::uint32_t>(size), digest_of(std::span{data, size})});
      return send(free_slot(), {data, size}, begin);
    }
    DigestStream digest;
    for (auto at = begin; at < end;) {
      const auto upto = std::min(end, (at / kAccess + 1) * kAccess);
      const int slot = free_slot();
      send(slot, gather(slot, at, upto, piece, digest), at);
      at = upto;
    }
    segments_.push_back({begin, static_cast<std::uint32_t>(size), digest.value()});
  }

  int free_slot() {
    const int slot = next_;
    next_ = (next_ + 1) % kSlots;
    wait(slot);
    return slot;
  }

  void send(int slot, std::span<const std::byte> bytes, std::uint64_t begin) {
    const auto end = begin + bytes.size(), first = up(begin), last = down(end);
    if (first >= last || last - first < kDirectAtLeast) return file_->write(bytes, begin);
    file_->begin_write(slot, bytes.subspan(first - begin, last - first), first);
    under_way_[static_cast<std::size_t>(slot)] = file_;
    if (first > begin) file_->write(bytes.first(first - begin), begin);
    if (end > last) file_->write(bytes.subspan(last - begin), last);
  }

  /// [begin, end) in the slot's memory. `piece` has `begin`; afterwards it has `end`, or is the one after the last.
  std::span<const std::byte> gather(int slot, std::uint64_t begin, std::uint64_t end, const PartPlan::Piece*& piece, DigestStream& digest) {
    if (!memory_.data()) memory_ = PageBuffer{kSlots * kSlotBytes};  // together: in huge pages
    const std::span into{memory_.data() + static_cast<std::size_t>(slot) * kSlotBytes + begin % kPage,
                         static_cast<std::size_t>(end - begin)};
    copy_and_digest(into, begin, piece, digest);
    return into;
  }

  PageBuffer memory_;  // outlives the files, which wait for what is under way
  std::vector<std::unique_ptr<File>> files_;
  std::array<File*, File::num_slots> under_way_{};
  File* file_ = nullptr;
  std::vector<Segment> segments_;
  int next_ = 0;
};

}  // namespace

void write_plan(const fs::path& directory, PartPlan& plan, FileSystem& file_system) {
  file_system.make_directory(directory);  // its parent goes when the save is given up: then it is not made again
  const auto own_file = directory / rank_file_name(plan.record.rank);
  if (file_system.kind(own_file)) file_system.remove_file(own_file);  // what it said is no longer so
  plan.record.written.clear();
  PartWriter writer;
  for (const auto& planned : plan.files) {
    auto segments = writer.write(file_system.open(directory / planned.name, FileSystem::Access::Write), planned);
    plan.record.written.push_back({planned.name, planned.size, std::move(segments)});
  }
  auto files = writer.finish();
  const auto record = fs::path{own_file} += ".tmp";
  if (file_system.kind(record)) file_system.remove_file(record);  // of a writer that was killed
  files.push_back(file_system.open(record, FileSystem::Access::Write));
  const auto bytes = to_bytes(plan.record);
  files.back()->set_size(bytes.size());
  files.back()->write(std::as_bytes(std::span{bytes}), 0);
  file_system.sync_all(files, {});
  file_system.rename(record, own_file);  // the commit syncs the directory, for all entries made in it
}

}  // namespace detail

void write_part(const std::filesystem::path& directory, const CheckpointPart& part, FileSystem& file_system) {
  auto plan = detail::plan_part(part);
  detail::write_plan(directory, plan, file_system);
}

}  // namespace troupe

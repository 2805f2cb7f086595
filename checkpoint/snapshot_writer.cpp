#include "descriptor.hpp"
#include "files.hpp"
#include "snapshot_copy.hpp"
#include "snapshot_file.hpp"

#include <troupe/memory_snapshot.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

namespace troupe {

namespace fs = std::filesystem;
using detail::ShareState;
using detail::SnapshotHeader;
using detail::SnapshotRecord;
using detail::Stamp;

namespace {

constexpr int kSlots = 2;
constexpr std::uint64_t kPage = detail::snapshot_page, kLine = 64;

std::uint64_t up(std::uint64_t bytes, std::uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

int take_room_of_file(int fd, std::uint64_t bytes) { return ::posix_fallocate(fd, 0, static_cast<off_t>(bytes)); }

/// A file mapped shared.
class Mapping {
 public:
  Mapping() = default;
  Mapping(int fd, std::uint64_t bytes, int protection, int flags, const fs::path& path) : bytes_(bytes) {
    data_ = ::mmap(nullptr, bytes, protection, MAP_SHARED | flags, fd, 0);
    if (data_ == MAP_FAILED) files::fail("map", path, errno);
  }
  ~Mapping() {
    if (data_) ::munmap(data_, bytes_);
  }
  Mapping(Mapping&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  explicit operator bool() const noexcept { return data_ != nullptr; }
  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  [[nodiscard]] SnapshotHeader& header() const noexcept { return *static_cast<SnapshotHeader*>(data_); }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  /// The stamp of what is mapped, whoever writes it.
  [[nodiscard]] Stamp stamp() const noexcept {
    return data_ ? Stamp::of(std::atomic_ref{header().stamp}.load(std::memory_order_acquire)) : Stamp{};
  }

 private:
  void* data_ = nullptr;
  std::uint64_t bytes_ = 0;
};

/// What there is to copy, and where it goes.
struct Plan {
  SnapshotRecord record;
  struct Copy {
    const TensorRange* range = nullptr;
    const TensorSpec* spec = nullptr;
  };
  std::vector<Copy> copies;  // beside record.pieces
  std::string record_bytes;
  std::uint64_t data_bytes = 0;
};

}  // namespace

struct SnapshotWriter::Impl {
  Place place;
  TakeRoom take_room;
  std::array<Mapping, kSlots> own;
  std::vector<std::array<Mapping, kSlots>> others;  // headers only, by rank
  int newest = -1;           // slot of the last number; -1: none yet
  std::uint64_t number = 0;  // in it
  std::uint64_t whole = 0;   // the newest number known to be whole

  Impl(Place p, TakeRoom room)
      : place(std::move(p)), take_room(room ? std::move(room) : TakeRoom{take_room_of_file}), others(static_cast<std::size_t>(place.world_size)) {}

  [[nodiscard]] fs::path path(int slot, int rank) const {
    return detail::slot_path(place.directory, place.series, slot) / detail::snapshot_file_name(rank);
  }

  /// The stamps of a rank's two files. What it has not made yet is empty.
  [[nodiscard]] std::array<Stamp, kSlots> stamps(int rank) {
    std::array<Stamp, kSlots> found;
    for (int slot = 0; slot < kSlots; ++slot) {
      const auto s = static_cast<std::size_t>(slot);
      auto& mapping = rank == place.rank ? own[s] : others[static_cast<std::size_t>(rank)][s];
      if (!mapping && rank != place.rank) mapping = header_of(path(slot, rank));
      found[s] = mapping.stamp();
    }
    return found;
  }

  static Mapping header_of(const fs::path& path) {
    const detail::Descriptor fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW)};
    struct stat stat {};
    if (fd.value < 0 || ::fstat(fd.value, &stat) != 0 || static_cast<std::uint64_t>(stat.st_size) < kPage) return {};
    return {fd.value, kPage, PROT_READ, 0, path};
  }

  enum class Verdict { Whole, Never, Unknown };
  /// Whether the last number is whole. What one rank hears here no rank ever hears otherwise, but for Unknown: docs/decisions/0017.
  [[nodiscard]] Verdict verdict() {
    bool all_good = true;
    for (int rank = 0; rank < place.world_size; ++rank) {
      const auto found = stamps(rank);
      const auto at = std::ranges::find(found, number, &Stamp::number);
      const auto largest = std::max(found[0].number, found[1].number);
      if (at == found.end() && largest > number) return Verdict::Never;  // it went on without it
      if (at == found.end() || at->state == ShareState::Copying) all_good = false;
      else if (at->state == ShareState::NotFinite) return Verdict::Never;
    }
    return all_good ? Verdict::Whole : Verdict::Unknown;
  }

  [[nodiscard]] Plan plan(const CheckpointPart& part, std::uint64_t next, std::uint64_t reports) const {
    Plan plan;
    auto& record = plan.record;
    record.rank = place.rank;
    record.world_size = place.world_size;
    record.attempt = place.attempt;
    record.number = next;
    record.reports = reports;
    auto tensors = detail::snapshot_tensors(part);
    record.tensors_digest = detail::digest_of_tensors(tensors);
    std::uint32_t first = 0;
    for (const auto& file : part.files) {
      for (const auto& range : file.mine) {
        if (range.bytes.empty()) continue;
        record.pieces.push_back({first + static_cast<std::uint32_t>(range.tensor), range.begin, range.bytes.size(), plan.data_bytes});
        plan.copies.push_back({&range, &file.tensors.at(range.tensor)});
        plan.data_bytes += up(range.bytes.size(), kLine);
      }
      first += static_cast<std::uint32_t>(file.tensors.size());
    }
    if (place.rank == 0) {
      record.tensors = std::move(tensors);
      record.state = part.state;
    }
    record.own = part.rank_state;
    plan.record_bytes = detail::to_bytes(record);
    return plan;
  }

  /// Makes the slot's file large enough, and maps it. Bytes of it may be lost.
  [[nodiscard]] Outcome make_room(int slot, const Plan& plan) {
    auto& mapping = own[static_cast<std::size_t>(slot)];
    const auto wanted = detail::data_begin_after(plan.record_bytes.size()) + plan.data_bytes;
    if (mapping && wanted <= mapping.bytes()) return {};
    // The record's length varies a little from step to step.
    const auto bytes = up(wanted + plan.record_bytes.size() / 4 + kPage, kPage);
    const auto file = path(slot, place.rank);
    const detail::Descriptor fd{::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)};
    if (fd.value < 0) return {Errc::StorageUnavailable, "cannot make " + file.string() + ": " + std::strerror(errno)};
    if (const int error = take_room(fd.value, bytes); error != 0) {
      if (!mapping) ::unlink(file.c_str());
      return {Errc::StorageUnavailable, "cannot take " + std::to_string(bytes >> 20) + " MiB for " + file.string() + ": " + std::strerror(error) +
                                            "; snapshots need twice the state's bytes there. Give it more (Docker: --shm-size), set "
                                            "FailureConfig::snapshot_path to a larger file system in memory, or snapshot_every to 0"};
    }
    try {
      mapping = Mapping{fd.value, bytes, PROT_READ | PROT_WRITE, MAP_POPULATE, file};
    } catch (const Failure& failure) {
      return {failure.code(), failure.what()};
    }
    return {};
  }

  [[nodiscard]] Result copy(const Plan& plan, const Mapping& mapping) const {
    Result result;
    auto& header = mapping.header();
    auto* const data = mapping.data() + header.data_begin;
    for (std::size_t i = 0; i < plan.copies.size(); ++i) {
      const auto& [range, spec] = plan.copies[i];
      auto* const to = data + plan.record.pieces[i].offset;
      if (!range->finite) detail::copy_past_cache(to, range->bytes.data(), range->bytes.size());
      else if (!detail::copy_and_check(to, range->bytes.data(), range->bytes.size(), spec->dtype) && !result.culprit) result = {Taken::NotFinite, spec};
    }
    return result;
  }
};

const TensorSpec* find_not_finite(const CheckpointPart& part) {
  for (const auto& file : part.files) {
    for (const auto& range : file.mine) {
      const auto& spec = file.tensors.at(range.tensor);
      if (range.finite && !detail::all_finite(range.bytes.data(), range.bytes.size(), spec.dtype)) return &spec;
    }
  }
  return nullptr;
}

SnapshotWriter::SnapshotWriter(Place place, TakeRoom take_room) : impl_(std::make_unique<Impl>(std::move(place), std::move(take_room))) {}
SnapshotWriter::~SnapshotWriter() = default;

Outcome SnapshotWriter::reserve(const CheckpointPart& part) {
  auto& i = *impl_;
  const auto plan = i.plan(part, 0, 0);
  Outcome outcome;
  for (int slot = 0; slot < kSlots && outcome.ok(); ++slot) outcome = i.make_room(slot, plan);
  if (outcome.ok() || i.number > 0) return outcome;
  for (int slot = 0; slot < kSlots; ++slot) {
    i.own[static_cast<std::size_t>(slot)] = {};
    ::unlink(i.path(slot, i.place.rank).c_str());
  }
  return outcome;
}

SnapshotWriter::Result SnapshotWriter::take(std::uint64_t number, const CheckpointPart& part, std::uint64_t reports) {
  auto& i = *impl_;
  int slot = 0;
  if (i.newest >= 0) {
    const auto verdict = i.verdict();
    if (verdict == Impl::Verdict::Unknown) return {Taken::Skipped, nullptr};
    slot = verdict == Impl::Verdict::Whole ? 1 - i.newest : i.newest;
    if (verdict == Impl::Verdict::Whole) i.whole = i.number;
  }
  const auto plan = i.plan(part, number, reports);
  auto& mapping = i.own[static_cast<std::size_t>(slot)];
  // From here on the slot's old number is gone, whatever happens.
  if (mapping) std::atomic_ref{mapping.header().stamp}.store(Stamp{number, ShareState::Copying}.word());
  const auto remember = [&] {
    i.newest = slot;
    i.number = number;
  };
  if (const auto room = i.make_room(slot, plan); !room.ok()) {
    if (mapping) std::atomic_ref{mapping.header().stamp}.store(Stamp{number, ShareState::NotFinite}.word());
    if (mapping) remember();
    room.or_throw();
  }
  auto& header = mapping.header();
  const std::atomic_ref stamp{header.stamp};
  stamp.store(Stamp{number, ShareState::Copying}.word());
  std::memcpy(header.mark, detail::snapshot_mark, sizeof header.mark);
  header.version = detail::snapshot_version;
  header.rank = static_cast<std::uint32_t>(i.place.rank);
  header.world_size = static_cast<std::uint32_t>(i.place.world_size);
  header.attempt = i.place.attempt;
  header.record_bytes = plan.record_bytes.size();
  header.data_begin = detail::data_begin_after(plan.record_bytes.size());
  std::memcpy(mapping.data() + kPage, plan.record_bytes.data(), plan.record_bytes.size());
  const auto result = i.copy(plan, mapping);
  stamp.store(Stamp{number, result.taken == Taken::Good ? ShareState::Good : ShareState::NotFinite}.word(), std::memory_order_seq_cst);
  remember();
  return result;
}

std::uint64_t SnapshotWriter::newest_whole() const noexcept { return impl_->whole; }

std::uint64_t SnapshotWriter::bytes() const noexcept { return impl_->own[0].bytes() + impl_->own[1].bytes(); }

std::vector<SnapshotInfo> SnapshotWriter::whole() const {
  std::vector<SnapshotInfo> found;
  for (int slot = 0; slot < kSlots; ++slot) {
    if (auto info = read_snapshot_info(detail::slot_path(impl_->place.directory, impl_->place.series, slot))) found.push_back(std::move(*info));
  }
  std::ranges::sort(found, std::ranges::greater{}, &SnapshotInfo::number);
  return found;
}

}  // namespace troupe

#pragma once

#include "descriptor.hpp"

#include <troupe/checkpoint_files.hpp>
#include <troupe/memory_snapshot.hpp>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// A rank's share of a snapshot in one file: a page of header, the record (framed, with a digest), the tensors' bytes.

namespace troupe::detail {

/// How far a share has come. A share that was not good never becomes good under the same number.
enum class ShareState : std::uint8_t { Empty = 0, Copying = 1, Good = 2, NotFinite = 3 };

/// A number and its state in one word, so that both change at once.
struct Stamp {
  std::uint64_t number = 0;
  ShareState state = ShareState::Empty;
  bool operator==(const Stamp&) const = default;
  [[nodiscard]] std::uint64_t word() const noexcept { return number << 2 | static_cast<std::uint64_t>(state); }
  [[nodiscard]] static Stamp of(std::uint64_t word) noexcept { return {word >> 2, static_cast<ShareState>(word & 3)}; }
};

constexpr std::uint64_t snapshot_page = 4096;

/// The first page. `stamp` is read and written by several processes, the rest only under a stamp that says so.
struct SnapshotHeader {
  char mark[8];
  std::uint32_t version;
  std::uint32_t rank;
  std::uint32_t world_size;
  std::uint32_t unused;
  std::uint64_t attempt;
  std::uint64_t stamp;
  std::uint64_t record_bytes;  ///< from `snapshot_page` on
  std::uint64_t data_begin;
};
static_assert(sizeof(SnapshotHeader) <= snapshot_page);
static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free);

/// Where tensors' bytes begin.
constexpr std::uint64_t data_begin_after(std::uint64_t record_bytes) noexcept {
  return snapshot_page + (record_bytes + snapshot_page - 1) / snapshot_page * snapshot_page;
}

constexpr char snapshot_mark[9] = "TROUPE\0S";
constexpr std::uint32_t snapshot_version = 1;

/// Bytes [begin, begin + bytes) of a tensor lie at `offset` of the file's data.
struct SnapshotPiece {
  std::uint32_t tensor = 0;  ///< place in rank 0's list
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;
};

struct SnapshotRecord {
  std::int32_t rank = 0;
  std::int32_t world_size = 1;
  std::uint64_t attempt = 0;
  std::uint64_t number = 0;
  std::uint64_t reports = 0;
  std::uint64_t tensors_digest = 0;   ///< equal on all ranks
  std::vector<StoredTensor> tensors;  ///< rank 0's only; `file` and `begin` are 0
  std::vector<SnapshotPiece> pieces;
  std::optional<TrainState> state;    ///< rank 0's only
  RankState own;
};

[[nodiscard]] std::string to_bytes(const SnapshotRecord& record);
/// Memory is bounded by the bytes given. Throws Failure{FileCorrupt} that begins with `what`.
[[nodiscard]] SnapshotRecord snapshot_record_from_bytes(std::string_view bytes, std::string_view what);
/// Of the list of all tensors, as rank 0 stores it.
[[nodiscard]] std::vector<StoredTensor> snapshot_tensors(const CheckpointPart& part);
[[nodiscard]] std::uint64_t digest_of_tensors(const std::vector<StoredTensor>& tensors);

/// "rank_00003.snapshot"
[[nodiscard]] std::string snapshot_file_name(int rank);
[[nodiscard]] std::filesystem::path series_path(const std::filesystem::path& directory, std::uint64_t series);
[[nodiscard]] std::filesystem::path slot_path(const std::filesystem::path& directory, std::uint64_t series, int slot);
/// Numbers of the series in `directory`, ascending; none when it is not there. Throws Failure{StorageUnavailable}.
[[nodiscard]] std::vector<std::uint64_t> snapshot_series(const std::filesystem::path& directory);

/// A whole snapshot, opened. The constructor reads and checks every rank's header and record, and that their pieces tile all tensors.
/// Throws Failure{FileCorrupt} naming the file when it is not whole, or {FileNotFound}.
class SnapshotSlot {
 public:
  explicit SnapshotSlot(std::filesystem::path slot);

  [[nodiscard]] const SnapshotInfo& info() const noexcept { return info_; }
  [[nodiscard]] const std::vector<StoredTensor>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] const std::optional<TrainState>& state() const noexcept { return state_; }
  [[nodiscard]] std::map<int, RankState>& ranks() noexcept { return ranks_; }
  [[nodiscard]] std::vector<FileRecord> files() const;

  /// Bytes [begin, begin + into.size()) of a tensor. Throws Failure{FileCorrupt} when the slot was written to meanwhile.
  void read(std::size_t tensor, std::uint64_t begin, std::span<std::byte> into) const;

 private:
  struct Share {
    std::filesystem::path path;
    std::shared_ptr<Descriptor> file;
    std::uint64_t size = 0;
    std::uint64_t data_begin = 0;
  };
  struct Part {
    std::uint64_t begin = 0, bytes = 0, offset = 0;  ///< in the tensor; in the file
    int rank = 0;
  };
  SnapshotRecord open_share(int rank);
  void add_pieces(const SnapshotRecord& record);
  void check_tiles();
  void check_unchanged(int rank) const;

  std::filesystem::path slot_;
  SnapshotInfo info_;
  std::uint64_t tensors_digest_ = 0;
  std::vector<StoredTensor> tensors_;
  std::vector<std::vector<Part>> parts_;  ///< by tensor, by begin
  std::vector<Share> shares_;             ///< by rank
  std::optional<TrainState> state_;
  std::map<int, RankState> ranks_;
};

}  // namespace troupe::detail

#pragma once

#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

// Copies of the training state in files of a file system in memory, which outlive the ranks that made them. A snapshot holds what a
// checkpoint does and is read like one (`CheckpointReader`, `Accelerator::load_state`), by any strategy and number of ranks.
//
//     DIRECTORY/series_00002/slot_0/rank_00000.snapshot …    two slots in turn; each rank writes files of its own
//               series_00002/slot_1/rank_00000.snapshot …
//
// A series is what one attempt wrote. Layout, and why a whole snapshot is always left: docs/decisions/0017.

namespace troupe {

/// A snapshot that is whole: every rank's share is there, of one number.
struct SnapshotInfo {
  std::filesystem::path path;    ///< for `CheckpointReader` and `Accelerator::load_state`
  std::uint64_t number = 0;      ///< counts the snapshots of its series, from 1
  std::uint64_t attempt = 0;     ///< that took it
  int world_size = 0;
  std::uint64_t reports = 0;     ///< sent when it was taken: it is newer than the checkpoint of report i when this is more than i
  std::int64_t steps = 0;        ///< optimizer updates in it
};

/// The newest whole snapshot below `directory`; nothing when there is none, or no directory. Shares that are torn, cut, of different
/// numbers or of no good format make theirs no snapshot. Memory is bounded by the files' size. Not while ranks write there.
/// Throws Failure{StorageUnavailable} when the directory cannot be read.
[[nodiscard]] std::optional<SnapshotInfo> find_snapshot(const std::filesystem::path& directory);
/// What `path` is; nothing when it is no whole snapshot.
[[nodiscard]] std::optional<SnapshotInfo> read_snapshot_info(const std::filesystem::path& path);
/// True when `path` has a snapshot's files, whole or not.
[[nodiscard]] bool is_snapshot(const std::filesystem::path& path);
/// Removes all that snapshots left in `directory`, which itself stays. Does nothing when there is none.
void remove_snapshots(const std::filesystem::path& directory);

/// Makes room for a new series and returns its number: rank 0's call, before any writer of the series. All but the newest whole
/// snapshot goes; that one stays until the series has one of its own. Throws Failure{StorageUnavailable}.
[[nodiscard]] std::uint64_t begin_snapshot_series(const std::filesystem::path& directory);
/// Removes a series, whose writers are gone. Throws Failure{StorageUnavailable}.
void remove_snapshot_series(const std::filesystem::path& directory, std::uint64_t series);
/// Removes the series before `series`, which has a whole snapshot. Throws Failure{StorageUnavailable}.
void end_older_snapshot_series(const std::filesystem::path& directory, std::uint64_t series);

/// A tensor of training that is not finite in `part`; nullptr when there is none.
[[nodiscard]] const TensorSpec* find_not_finite(const CheckpointPart& part);

/// One rank's share of the snapshots of a series.
///
/// A share is copied into a slot only when the snapshot in the other one is known to be whole, so a rank that dies at any moment leaves
/// the ranks together one whole snapshot. Nobody waits for anybody.
///
/// Threads: one caller. Ranks may be threads or processes of one host.
class SnapshotWriter {
 public:
  /// Takes `bytes` for a file and returns 0 or an error number, as posix_fallocate(fd, 0, bytes) does.
  using TakeRoom = std::function<int(int fd, std::uint64_t bytes)>;

  struct Place {
    std::filesystem::path directory;  ///< as given to `begin_snapshot_series`
    std::uint64_t series = 0;
    std::uint64_t attempt = 0;
    int rank = 0;
    int world_size = 1;
  };
  explicit SnapshotWriter(Place place, TakeRoom take_room = {});
  ~SnapshotWriter();
  SnapshotWriter(const SnapshotWriter&) = delete;
  SnapshotWriter& operator=(const SnapshotWriter&) = delete;

  /// Takes all memory that snapshots of `part` need, for both slots, and maps it. StorageUnavailable when there is not enough: then
  /// what was taken is given back, and nothing is ever written past the end of memory (SIGBUS).
  [[nodiscard]] Outcome reserve(const CheckpointPart& part);

  enum class Taken : std::uint8_t {
    Good,       ///< this rank's share is there
    NotFinite,  ///< a tensor of training is not finite: this number will never be whole, and the one before stays
    Skipped,    ///< the others have not said yet how the last one went, or one of them has stopped: nothing was changed
  };
  struct Result {
    Taken taken = Taken::Good;
    const TensorSpec* culprit = nullptr;  ///< of NotFinite: points into `part`
  };
  /// Copies the part's tensors and states. Ranks give equal numbers at equal steps, ascending.
  /// @param part as for `write_part`; only its first use, or one that is larger than before, takes memory.
  /// Throws Failure{StorageUnavailable} when it has grown and there is no more memory; the last whole snapshot then stays.
  [[nodiscard]] Result take(std::uint64_t number, const CheckpointPart& part, std::uint64_t reports);

  /// The newest number that this rank knows to be whole, 0 at first, and its path.
  [[nodiscard]] std::uint64_t newest_whole() const noexcept;
  /// Bytes of memory that this rank's files take.
  [[nodiscard]] std::uint64_t bytes() const noexcept;
  /// The whole snapshots of the series as they are now, the newest first: one or two, none at first.
  [[nodiscard]] std::vector<SnapshotInfo> whole() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe

#pragma once

#include <filesystem>
#include <string>

namespace troupe {

/// A run's directory on a file system in memory, where its ranks keep snapshots (troupe/memory_snapshot.hpp). It outlives
/// ranks and, when that is killed, their driver: the next driver of the run finds it. One driver at a time.
///
///     SNAPSHOT_PATH/troupe-<user id>/<digest of the run's path>/
class SnapshotDirectory {
 public:
  /// Makes it, or takes over what a driver left; others whose drivers are gone for more than an hour are removed.
  /// Throws Failure{StorageUnavailable} when the place cannot be used, or is somebody else's.
  SnapshotDirectory(const std::filesystem::path& snapshot_path, const std::filesystem::path& run);
  ~SnapshotDirectory();
  SnapshotDirectory(const SnapshotDirectory&) = delete;
  SnapshotDirectory& operator=(const SnapshotDirectory&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// Removes it with all snapshots. No rank may use it any more.
  void remove() noexcept;

 private:
  std::filesystem::path path_;
  int lock_fd_ = -1;
};

}  // namespace troupe

#pragma once

#include <troupe/file_system.hpp>

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>

namespace troupe {

/// A committed checkpoint at a path of the user's choice, outside of any run: `target` is the old one or the new one, whole.
///
/// Parts are written into `staging()`, a hidden directory beside the target. One object on the rank that commits; the others only
/// ask for `staging_of`.
///
/// Threads: one caller at a time. Errors: Failure{StorageUnavailable} naming the path.
class CheckpointDirectory {
 public:
  explicit CheckpointDirectory(std::filesystem::path target, FileSystem& file_system = real_file_system());

  /// Where all writers put their parts.
  [[nodiscard]] static std::filesystem::path staging_of(const std::filesystem::path& target);
  /// Where the checkpoint at `path` lies: there, or still beside it, when a save was stopped between two renames on a file system
  /// that cannot exchange directories. Changes nothing.
  [[nodiscard]] static std::filesystem::path whereabouts(const std::filesystem::path& path, FileSystem& file_system = real_file_system());
  [[nodiscard]] const std::filesystem::path& target() const noexcept { return target_; }

  /// Makes an empty staging directory, and ends first what a save that was stopped has left. Throws Failure{AlreadyExists} when the target holds files that are no checkpoint,
  /// or, with `replace` false, when it is there at all.
  void begin(bool replace = true);
  /// Waits until the writers' parts are all there. Looks every 10 ms, and stops when one of them gave up (`give_up`) or `stop`
  /// says so. Throws Failure naming the rank that is missing after `limit`, or the reason a rank gave.
  void wait_for_parts(int num_writers, std::chrono::milliseconds limit, const std::function<bool()>& stop);
  /// For a writer whose part cannot be written: tells wait_for_parts why.
  static void give_up(const std::filesystem::path& target, int rank, const std::string& why, FileSystem& file_system = real_file_system()) noexcept;
  /// Checks that the parts make a whole, writes the manifest and puts it in place of the target. Throws as RunStorage::commit.
  void commit(int num_writers);
  /// Removes what was written; the target stays as it is.
  void discard() noexcept;

 private:
  void settle();  ///< ends what a save that was stopped has begun, and removes its leftovers

  std::filesystem::path target_, hidden_;
  FileSystem& file_system_;
};

/// `path` absolute and without "." and trailing slashes.
[[nodiscard]] std::filesystem::path plain_path(const std::filesystem::path& path);

}  // namespace troupe

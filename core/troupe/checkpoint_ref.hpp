#pragma once

#include <troupe/pending_save.hpp>

#include <filesystem>
#include <memory>

namespace troupe {

/// A checkpoint: a directory. Holding one holds no file open and no lock.
class Checkpoint {
 public:
  Checkpoint() = default;
  /// @param num_writers ranks that report a part of it under the same report index: it is whole when all have.
  /// @param pending this rank's part while it is still being written; nullptr: it is there.
  explicit Checkpoint(std::filesystem::path path, int num_writers = 1, std::shared_ptr<PendingSave> pending = nullptr)
      : path_(std::move(path)), num_writers_(num_writers), pending_(std::move(pending)) {}
  /// Name as in Ray Train.
  [[nodiscard]] static Checkpoint from_directory(std::filesystem::path path) { return Checkpoint{std::move(path)}; }
  [[nodiscard]] int num_writers() const noexcept { return num_writers_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// The save of an asynchronous `Accelerator::checkpoint()`; nullptr: everything is written.
  [[nodiscard]] const std::shared_ptr<PendingSave>& pending() const noexcept { return pending_; }
  /// The same directory and number of writers.
  bool operator==(const Checkpoint& other) const { return path_ == other.path_ && num_writers_ == other.num_writers_; }

 private:
  std::filesystem::path path_;
  int num_writers_ = 1;
  std::shared_ptr<PendingSave> pending_;
};

}  // namespace troupe

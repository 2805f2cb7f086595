#pragma once

#include <filesystem>

namespace troupe {

/// A checkpoint: a directory. Holding one holds no file open and no lock.
class Checkpoint {
 public:
  Checkpoint() = default;
  /// @param num_writers ranks that report a part of it under the same report index: it is whole when all have.
  explicit Checkpoint(std::filesystem::path path, int num_writers = 1) : path_(std::move(path)), num_writers_(num_writers) {}
  /// Name as in Ray Train.
  [[nodiscard]] static Checkpoint from_directory(std::filesystem::path path) { return Checkpoint{std::move(path)}; }
  [[nodiscard]] int num_writers() const noexcept { return num_writers_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  bool operator==(const Checkpoint&) const = default;

 private:
  std::filesystem::path path_;
  int num_writers_ = 1;
};

}  // namespace troupe

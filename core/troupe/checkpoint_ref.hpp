#pragma once

#include <filesystem>

namespace troupe {

/// A checkpoint: a directory. Holding one holds no file open and no lock.
class Checkpoint {
 public:
  Checkpoint() = default;
  explicit Checkpoint(std::filesystem::path path) : path_(std::move(path)) {}
  /// Name as in Ray Train.
  [[nodiscard]] static Checkpoint from_directory(std::filesystem::path path) { return Checkpoint{std::move(path)}; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  bool operator==(const Checkpoint&) const = default;

 private:
  std::filesystem::path path_;
};

}  // namespace troupe

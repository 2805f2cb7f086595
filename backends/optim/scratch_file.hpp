#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace troupe::detail {

/// A rank's file without a name: gone with its last descriptor, so nothing is left even after kill -9.
/// Opened past the page cache (O_DIRECT) where the file system can: memory, length and offset of an access are then multiples
/// of `alignment`.
class ScratchFile {
 public:
  static constexpr std::int64_t alignment = 4096;

  /// Throws Failure{FileNotFound} when `directory` is none, Failure{StorageUnavailable} when no file can be made there.
  ScratchFile(const std::filesystem::path& directory, int rank);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_; }
  /// Takes room on the device for the first `bytes` bytes. Throws Failure{StorageUnavailable} when there is not as much.
  void reserve(std::int64_t bytes);
  /// Throws Failure{StorageUnavailable} naming directory, rank and `what` ("read", "written") unless error (an errno) is 0.
  void check(int error, const char* what) const;

 private:
  std::string where_;
  int fd_ = -1;
  std::int64_t room_ = 0;
};

}  // namespace troupe::detail

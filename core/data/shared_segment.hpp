#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace troupe {

/// A file descriptor that is closed with it.
class OwnFd {
 public:
  explicit OwnFd(int fd = -1) : fd_(fd) {}
  ~OwnFd();
  OwnFd(OwnFd&& other) noexcept : fd_(other.release()) {}
  OwnFd& operator=(OwnFd&& other) noexcept;
  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] int release() noexcept;

 private:
  int fd_;
};

/// Memory without a name that two processes map; it ends with the last of them. Grows, never shrinks.
///
/// Threads: one at a time. Errors: Failure{OutOfMemory} when there is none left, before anything is written.
class SharedSegment {
 public:
  SharedSegment();
  /// Of another process.
  explicit SharedSegment(OwnFd fd);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  /// At least `size` bytes of it; moves what was mapped before.
  [[nodiscard]] std::span<std::byte> at_least(std::size_t size);
  /// All of it, also what the other process has added.
  [[nodiscard]] std::span<std::byte> all();

 private:
  void map(std::size_t size);
  OwnFd fd_;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace troupe

#pragma once

#include "shared_state.hpp"

#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace troupe::detail {

/// One rank's part of the memfd, handed out in blocks. Free memory is always zero, and large free blocks hold no pages.
///
/// Threads: any.
class Arena : public std::enable_shared_from_this<Arena> {
 public:
  Arena(std::shared_ptr<SharedState> state, int fd, int rank);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Zeroed, aligned to 64 bytes. Throws Failure{StartFailed} when the rank's part is full or no memory is left.
  [[nodiscard]] std::shared_ptr<void> allocate(std::size_t bytes);
  /// The same, but not zeroed, from a cache of blocks that were used for this before.
  [[nodiscard]] std::shared_ptr<void> temporary(std::size_t bytes);
  /// Zeroed, and never handed out again: for what peers may look at after this rank is gone.
  [[nodiscard]] void* allocate_for_good(std::size_t bytes);

 private:
  std::size_t take(std::size_t bytes);
  void release(std::size_t offset, std::size_t bytes) noexcept;
  void clear(std::size_t offset, std::size_t bytes) noexcept;

  std::shared_ptr<SharedState> state_;
  int fd_;
  std::byte* begin_;
  std::size_t file_offset_;
  std::mutex mutex_;
  std::map<std::size_t, std::size_t> free_;  ///< offset to bytes
  std::mutex temporaries_mutex_;
  std::multimap<std::size_t, std::pair<std::size_t, std::size_t>> temporaries_;  ///< bytes to (offset, bytes)
  std::size_t temporary_bytes_ = 0;
};

}  // namespace troupe::detail

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace troupe::detail {

/// Reads and writes of one file under way at once, one a ticket.
///
/// Memory handed over must live until `wait` for its ticket has returned. The destructor waits for what is under way, but not for
/// a ticket whose `wait` ran out of time. Threads: one caller at a time.
class AsyncIo {
 public:
  enum class Kind : std::uint8_t { Read, Write };

  virtual ~AsyncIo() = default;
  /// Begins to move all of [data, data + bytes); the ticket must be free.
  virtual void begin(int ticket, Kind kind, void* data, std::size_t bytes, std::int64_t offset) = 0;
  /// Until that is done, at most two minutes. 0, or an errno: EIO when the file ends early, ETIMEDOUT. A free ticket: 0.
  [[nodiscard]] virtual int wait(int ticket) = 0;
};

/// nullptr where this build has no liburing, or the kernel (or a container's filter) refuses io_uring.
[[nodiscard]] std::unique_ptr<AsyncIo> make_uring_io(int fd, int num_tickets);
/// pread and pwrite on a thread of its own.
[[nodiscard]] std::unique_ptr<AsyncIo> make_thread_io(int fd, int num_tickets);

}  // namespace troupe::detail

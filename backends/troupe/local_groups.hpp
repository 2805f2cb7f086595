#pragma once

#include <troupe/communicator.hpp>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

/// Seats of `size` ranks that are threads of this process; element r goes to rank r's thread. Buffers need no special
/// memory. The group lives until its last seat is gone.
[[nodiscard]] std::vector<std::unique_ptr<Communicator>> make_thread_group(int size, std::chrono::milliseconds timeout);

/// A group of ranks that are processes of this host, over one memfd: the driver creates it, hands `fd()` to every
/// process it starts, and may abort it. Nothing is left behind when the processes are gone, however they ended.
class SharedGroup {
 public:
  /// Throws Failure{StartFailed} naming the limit when memory or descriptors cannot be had.
  [[nodiscard]] static std::unique_ptr<SharedGroup> create(int size, std::chrono::milliseconds timeout);
  virtual ~SharedGroup() = default;
  /// The memfd; close-on-exec is set, the starter clears it for the child (or passes it over a socket).
  [[nodiscard]] virtual int fd() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;
  /// Frees every rank that waits, within 100 ms, with Errc::Aborted and `reason`. Any thread.
  virtual void abort(const std::string& reason) noexcept = 0;
  /// Takes rank `rank`'s seat, in the process that got `fd`. The descriptor stays the caller's.
  /// Throws Failure{ProtocolError} when the memory is of another version or size.
  [[nodiscard]] static std::unique_ptr<Communicator> join(int fd, int rank);
};

}  // namespace troupe

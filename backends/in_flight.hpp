#pragma once

#include <troupe/communicator.hpp>
#include <troupe/device.hpp>

#include <deque>

namespace troupe::detail {

/// Collectives that the compute stream waits for, and whose end nobody has looked at yet.
///
/// Without streams `after` is `wait`. With them the calling thread goes on, as on a GPU it must to keep the device busy, but
/// a collective that never ends would then hang the device with nobody to tell. So the thread waits, with the
/// collective's deadline, for the one before the last, and `check` for all.
///
/// Threads: one caller at a time. Errors: the collectives'.
class InFlight {
 public:
  explicit InFlight(Stream& compute) : compute_(compute) {}
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;

  /// What compute is given from here on begins after it.
  void after(Work work);
  /// Returns when all are done. Call it before memory goes that is none of the pool's.
  void check();
  /// The same, for those who are ending anyway.
  void drop() noexcept { works_.clear(); }

 private:
  static constexpr std::size_t max_unchecked = 1;
  Stream& compute_;
  std::deque<Work> works_;
};

}  // namespace troupe::detail

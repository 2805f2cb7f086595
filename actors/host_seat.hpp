#pragma once

#include <troupe/host_group.hpp>
#include <troupe/messages.hpp>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace troupe::detail {

/// A rank's way to its seat in a group on several hosts: it waits for its peers on a thread of its own, so that an abort is heard meanwhile.
/// Threads: one, but for `done`.
class HostSeat {
 public:
  using Done = std::function<void(std::shared_ptr<Communicator> seat, const Outcome& outcome)>;

  /// Begins to listen. Throws Failure{StartFailed}.
  /// @param local its seat among the ranks of its host
  HostSeat(const RunRank& order, std::unique_ptr<Communicator> local);
  /// Ends the wait.
  ~HostSeat();
  HostSeat(const HostSeat&) = delete;
  HostSeat& operator=(const HostSeat&) = delete;

  [[nodiscard]] SeatOpened opened() const;
  /// Once. @param done called on another thread, at most once
  void join(const SeatsKnown& known, Done done);
  /// Whether `join` was called.
  [[nodiscard]] bool is_joining() const noexcept { return thread_.joinable(); }
  void abort(const std::string& reason) noexcept { meeting_->abort(reason); }

 private:
  const Attempt attempt_;
  const int rank_, host_, place_;
  const std::chrono::milliseconds timeout_;
  std::unique_ptr<Communicator> local_;
  std::unique_ptr<HostMeeting> meeting_;
  std::thread thread_;
};

}  // namespace troupe::detail

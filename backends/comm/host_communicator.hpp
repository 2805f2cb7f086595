#pragma once

#include "host_collectives.hpp"
#include "task_thread.hpp"

namespace troupe::detail {

/// A rank's seat in a group of several hosts. A thread makes its collectives, one after the other, in the order of the calls: so they
/// go on while the rank computes.
class HostCommunicator final : public RequestCommunicator {
 public:
  HostCommunicator(std::shared_ptr<HostCore> core, std::chrono::milliseconds timeout);

  int rank() const noexcept override { return core_->topology().rank; }
  int size() const noexcept override { return core_->topology().size(); }
  std::string name() const override { return "hosts"; }
  bool reaches_any_memory() const noexcept override { return core_->local().reaches_any_memory(); }
  std::unique_ptr<Communicator> split(int color) override;
  void abort(const std::string& reason) noexcept override { core_->fail(Errc::Aborted, reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return core_->local().allocate(bytes); }
  void set_timeout(std::chrono::milliseconds timeout) override { timeout_ = timeout; }
  FlightRecorder& recorder() noexcept override { return recorder_; }
  [[nodiscard]] std::uint64_t wire_bytes() const noexcept { return core_->wire_bytes(); }

 protected:
  Work post(const Request& request) override;

 private:
  Outcome perform_here(const Request& request, std::uint64_t sequence, const CollectiveLabel& label, std::chrono::milliseconds timeout);
  std::unique_ptr<Communicator> split_local(int color);
  std::unique_ptr<Communicator> join_part(int color, const NewSeat& place);

  std::shared_ptr<HostCore> core_;
  std::chrono::milliseconds timeout_;
  FlightRecorder recorder_;
  std::unique_ptr<HostCollectives> collectives_;  ///< nullptr: all ranks are on this host
  TaskThread thread_;  // last: it uses the rest
};

}  // namespace troupe::detail

#include "host_seat.hpp"

#include <troupe/start_limits.hpp>

namespace troupe::detail {

HostSeat::HostSeat(const RunRank& order, std::unique_ptr<Communicator> local)
    : attempt_(order.attempt), rank_(order.rank), host_(order.node_rank), place_(order.local_rank), timeout_(order.barrier_timeout), local_(std::move(local)), meeting_(HostMeeting::open(order.hosts, order.rank)) {}

HostSeat::~HostSeat() {
  meeting_->abort("another attempt begins");
  if (thread_.joinable()) thread_.join();
}

SeatOpened HostSeat::opened() const { return {attempt_, rank_, host_, place_, meeting_->endpoint()}; }

void HostSeat::join(const SeatsKnown& known, Done done) {
  if (thread_.joinable() || !local_) return;
  thread_ = start_thread("a rank that meets its peers", [this, endpoints = known.endpoints, done = std::move(done)] {
    try {
      std::shared_ptr<Communicator> seat = meeting_->join(endpoints, std::move(local_), timeout_);
      done(std::move(seat), {});
    } catch (const Failure& failure) {
      done(nullptr, {failure.code(), failure.what()});
    } catch (const std::exception& error) {
      done(nullptr, {Errc::StartFailed, error.what()});
    }
  });
}

}  // namespace troupe::detail

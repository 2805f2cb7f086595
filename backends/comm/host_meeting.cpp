#include "host_communicator.hpp"
#include "local_access.hpp"

#include <troupe/host_group.hpp>

#include <atomic>
#include <mutex>
#include <numeric>

namespace troupe {

namespace detail {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

class Meeting final : public HostMeeting {
 public:
  explicit Meeting(MeetingPlan plan) : plan_(std::move(plan)), listener_(listen_on(plan_.address)), endpoint_(endpoint_of(listener_, plan_.address)) {}

  std::string endpoint() const override { return endpoint_; }

  void abort(const std::string& reason) noexcept override {
    const std::lock_guard lock{mutex_};
    if (aborted_.load()) return;
    reason_ = reason;
    aborted_.store(true);
  }

  std::unique_ptr<Communicator> join(const std::vector<std::string>& endpoints, std::unique_ptr<Communicator> local, milliseconds timeout) override {
    const auto& t = plan_.topology;
    if (listener_.get() < 0) throw Failure{Errc::InvalidArgument, "hosts: a meeting is joined once"};
    if (local->size() != t.ranks_of(t.host) || local->rank() != t.place())
      throw Failure{Errc::InvalidArgument, "hosts: rank " + std::to_string(t.rank) + " is place " + std::to_string(t.place()) + " of " +
                                               std::to_string(t.ranks_of(t.host)) + " on its host, not " + std::to_string(local->rank()) + " of " +
                                               std::to_string(local->size())};
    const auto listener = std::move(listener_);
    try {
      if (t.hosts() == 1) return std::make_unique<HostCommunicator>(std::make_shared<HostCore>(plan_, std::vector<HostLink>{}, std::move(local)), timeout);
      know_ranks_as(*local, t.names_here());
      auto links = connect_lane(plan_, listener, endpoints, timeout, [&] { check(*local); });
      local->recorder().set_label(whole_label("the meeting of the hosts"), /*compared=*/false);
      local->set_timeout(timeout + milliseconds{1000});  // for those of this host that still wait for a peer
      local->barrier().wait().or_throw();
      return std::make_unique<HostCommunicator>(std::make_shared<HostCore>(plan_, std::move(links), std::move(local)), timeout);
    } catch (const Failure& failure) {
      if (local) fail_group(*local, failure.code(), failure.what());
      throw;
    }
  }

 private:
  void check(Communicator& local) {
    if (aborted_.load()) {
      const std::lock_guard lock{mutex_};
      throw Failure{Errc::Aborted, reason_};
    }
    if (const auto failed = failure_of(local)) failed->or_throw();
  }

  MeetingPlan plan_;
  Fd listener_;
  std::string endpoint_;
  std::mutex mutex_;
  std::string reason_;
  std::atomic<bool> aborted_{false};
};

}  // namespace

std::unique_ptr<HostMeeting> open_meeting(MeetingPlan plan) { return std::make_unique<Meeting>(std::move(plan)); }

}  // namespace detail

std::unique_ptr<HostMeeting> HostMeeting::open(const HostPlan& plan, int rank) {
  std::vector<int> names(static_cast<std::size_t>(std::accumulate(plan.ranks_on.begin(), plan.ranks_on.end(), 0)));
  std::iota(names.begin(), names.end(), 0);
  return detail::open_meeting({detail::HostTopology{plan.ranks_on, rank, std::move(names)}, plan.address, std::make_shared<const detail::TlsKey>(plan.key), "", false});
}

std::uint64_t wire_bytes(const Communicator& group) noexcept {
  const auto* hosts = dynamic_cast<const detail::HostCommunicator*>(&group);
  return hosts ? hosts->wire_bytes() : 0;
}

}  // namespace troupe

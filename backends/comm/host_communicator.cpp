#include "host_communicator.hpp"

#include <troupe/black_box.hpp>

#include <array>
#include <cstring>
#include <future>
#include <utility>

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;

/// A collective that the thread makes, which keeps its deadline.
class HostWork final : public Work::State {
 public:
  bool poll() override {
    const std::lock_guard lock{mutex_};
    return done_;
  }
  Outcome wait() override {
    std::unique_lock lock{mutex_};
    if (!done_) {
      const WaitMark mark{WaitingIn::Collective};
      changed_.wait(lock, [this] { return done_; });
    }
    return outcome_;
  }
  void finish(Outcome outcome) {
    const std::lock_guard lock{mutex_};
    outcome_ = std::move(outcome);
    done_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  Outcome outcome_;
};

}  // namespace

HostCommunicator::HostCommunicator(std::shared_ptr<HostCore> core, std::chrono::milliseconds timeout)
    : core_(std::move(core)),
      timeout_(timeout),
      recorder_("hosts", core_->topology().rank, core_->topology().members),
      collectives_(core_->topology().hosts() > 1 ? std::make_unique<HostCollectives>(*core_) : nullptr) {}

Work HostCommunicator::post(const Request& request) {
  if (core_->broken()) return failed_work(core_->failure());
  const auto sequence = recorder_.post(request.collective(), Clock::now());
  auto work = std::make_shared<HostWork>();
  thread_.push([this, request, sequence, work, label = recorder_.label(), timeout = timeout_] {
    auto outcome = perform_here(request, sequence, label, timeout);
    recorder_.finish(sequence, outcome.code(), Clock::now());
    work->finish(std::move(outcome));
  });
  return Work{std::move(work)};
}

Outcome HostCommunicator::perform_here(const Request& request, std::uint64_t sequence, const CollectiveLabel& label, std::chrono::milliseconds timeout) {
  if (core_->broken()) return core_->failure();
  try {
    if (collectives_) {
      collectives_->run(request, sequence, label, timeout);
    } else {
      auto& local = core_->local();
      local.set_timeout(timeout);
      local.recorder().set_label(label.text(), label.hash != 0);
      perform(local, request).wait().or_throw();
    }
    return {};
  } catch (const Failure& failure) {
    core_->fail(failure.code(), failure.what());
  } catch (const std::exception& error) {
    core_->fail(Errc::Internal, error.what());
  }
  return core_->failure();
}

std::unique_ptr<Communicator> HostCommunicator::split_local(int color) {
  std::promise<std::unique_ptr<Communicator>> made;
  auto result = made.get_future();
  thread_.push([&, timeout = timeout_] {
    try {
      core_->local().set_timeout(timeout);
      made.set_value(core_->local().split(color));
    } catch (...) {
      made.set_exception(std::current_exception());
    }
  });
  return result.get();
}

std::unique_ptr<Communicator> HostCommunicator::join_part(int color, const NewSeat& place) {
  const auto& here = core_->topology();
  std::vector<int> ranks_on, names;  // parts keep the order of ranks
  for (int before = -1; const int r : place.members) {
    if (const int host = here.host_of(r); host != std::exchange(before, host)) ranks_on.push_back(0);
    ++ranks_on.back();
    names.push_back(here.name_of(r));
  }
  MeetingPlan plan{HostTopology{ranks_on, place.rank, std::move(names)}, core_->plan().address, core_->plan().key,
                   core_->plan().group + "/" + std::to_string(recorder_.sequence()) + "." + std::to_string(color), core_->plan().plain};
  std::array<char, 80> mine{};
  Fd listener;
  if (plan.topology.hosts() > 1 && plan.topology.in_lane()) {
    listener = listen_on(plan.address);
    const auto endpoint = endpoint_of(listener, plan.address);
    std::memcpy(mine.data(), endpoint.data(), std::min(endpoint.size(), mine.size() - 1));
  }
  std::vector<std::array<char, 80>> all(static_cast<std::size_t>(size()));
  all_gather({mine.data(), mine.size(), DType::U8}, {all.data(), all.size() * mine.size(), DType::U8}).wait().or_throw();
  auto local = split_local(color);
  std::vector<HostLink> links;
  if (listener.get() >= 0) {
    std::vector<std::string> endpoints;
    for (int h = 0; h < plan.topology.hosts(); ++h) {
      const auto peer = static_cast<std::size_t>(plan.topology.begin(h) + plan.topology.place());
      endpoints.emplace_back(all[static_cast<std::size_t>(place.members[peer])].data());
    }
    links = connect_lane(plan, listener, endpoints, timeout_, [this] {
      if (core_->broken()) core_->failure().or_throw();
    });
  }
  auto child = std::make_shared<HostCore>(std::move(plan), std::move(links), std::move(local));
  core_->adopt(child);
  return std::make_unique<HostCommunicator>(std::move(child), timeout_);
}

std::unique_ptr<Communicator> HostCommunicator::split(int color) {
  const auto colors = exchange_colors(*this, color);
  try {
    auto group = join_part(color, new_seat(colors, rank()));
    barrier().wait().or_throw();  // from here on a rank of the new group that goes is one that left
    return group;
  } catch (const Failure& failure) {
    core_->fail(failure.code(), failure.what());  // the others would wait for this rank
    throw;
  }
}

}  // namespace troupe::detail

#include "local_processes.hpp"

#include <unistd.h>

#include <numeric>

namespace troupe::detail {

namespace {

PoolOrder order_for(const Session& session, const ScalingConfig& scaling, const RunConfig& run) {
  PoolOrder order;
  order.program = "/proc/self/exe";  // this very program, also when its file was replaced since
  if (access(order.program.c_str(), X_OK) != 0) order.program = session.program();
  order.arguments = session.arguments();
  order.environment = run.worker_env;
  order.cpus_per_rank = scaling.cpus_per_worker;
  order.start_timeout = run.start_timeout;
  return order;
}

}  // namespace

LocalProcesses::LocalProcesses(const Session& session, const ScalingConfig& scaling, const RunConfig& run)
    : pool_(order_for(session, scaling, run)) {}

void LocalProcesses::begin_attempt(const StartGroup& order) {
  std::vector<int> ranks(static_cast<std::size_t>(order.scaling.num_workers));
  std::iota(ranks.begin(), ranks.end(), 0);
  pool_.begin_attempt(ranks);
  auto memory = SharedGroup::create(order.scaling.num_workers, order.run.collective_timeout);
  const std::lock_guard lock{mutex_};
  attempt_ = order.attempt;
  memory_ = std::move(memory);
}

std::shared_ptr<RankProcess> LocalProcesses::take(int rank, ProcessHandlers handlers) {
  std::shared_ptr<SharedGroup> memory;
  Attempt attempt = 0;
  {
    const std::lock_guard lock{mutex_};
    memory = memory_;
    attempt = attempt_;
  }
  auto process = pool_.take(rank, std::move(handlers));
  if (memory) pool_.give_seat(process, std::move(memory), attempt);
  return process;
}

std::shared_ptr<SharedGroup> LocalProcesses::memory_of(Attempt attempt) noexcept {
  const std::lock_guard lock{mutex_};
  return attempt == attempt_ ? memory_ : nullptr;
}

void LocalProcesses::abort(Attempt attempt, const std::string& reason) noexcept {
  if (const auto memory = memory_of(attempt)) memory->abort(reason);
}

void LocalProcesses::end_attempt(Attempt attempt) noexcept {
  const std::lock_guard lock{mutex_};
  if (attempt == attempt_) memory_.reset();
}

}  // namespace troupe::detail

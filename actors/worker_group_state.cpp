#include "worker_group_state.hpp"

#include "exceptions.hpp"
#include "memory_kills.hpp"

#include <troupe/failure_policy.hpp>
#include <troupe/group_rules.hpp>

#include <algorithm>
#include <utility>

namespace troupe {

namespace {

/// A thread that computes ends at its next call; more patience than a step takes would not be at once.
constexpr std::chrono::milliseconds at_once_limit{2'000};

/// A loop that has not looked for a stop by then is named.
constexpr std::chrono::milliseconds heed_limit{30'000};

}  // namespace

GroupState::~GroupState() {
  // Killed before its end: no rank may be left waiting for another.
  if (placer) placer->abort("the run was ended");
}

bool GroupState::is_stale(Attempt attempt) {
  if (attempt == order.attempt) return false;
  ++stale;
  return true;
}

void GroupState::wait_at_most(std::chrono::milliseconds limit, Wait wait) {
  self->delayed_send(self, limit, WaitOverdue{wait});
}

// ---- start --------------------------------------------------------------------------------------------------

RunRank GroupState::order_for(int rank) const {
  RunRank run;
  run.attempt = order.attempt;
  run.rank = run.local_rank = rank;
  run.world_size = run.local_world_size = world_size();
  run.function = order.function;
  run.config_json = order.config_json;
  run.run_name = order.run_name;
  run.run_directory = order.run_directory;
  run.resume_checkpoint = order.resume_checkpoint;
  run.previous_world_size = order.previous_world_size;
  run.first_report_index = order.first_report_index;
  run.scaling = order.scaling;
  run.barrier_timeout = order.run.collective_timeout;
  run.snapshots = order.snapshots;
  run.chaos = order.run.chaos;
  run.data = order.data;
  return run;
}

void GroupState::begin(StartGroup start) {
  order = std::move(start);
  ranks.resize(static_cast<std::size_t>(world_size()));
  pids.resize(ranks.size());
  wait_at_most(order.run.start_timeout, Wait::Start);
  watch.begin();
  int rank = 0;
  try {
    placer = make_placer(order);
    for (; rank < world_size(); ++rank) {
      auto run = order_for(rank);
      auto& actor = ranks[static_cast<std::size_t>(rank)];
      actor = placer->place(self, run);
      self->monitor(actor);  // no link: CAF searches all of an actor's links for each that comes or goes
      rank_of.emplace(actor.id(), rank);
      self->send(actor, std::move(run));
    }
  } catch (const Failure& failure) {
    if (placer && failure.code() == Errc::StartFailed) places = rank;
    fail(failure.code(), failure.what());
  } catch (const std::exception& error) {
    fail(ran_out_of_memory(error) ? Errc::OutOfMemory : Errc::StartFailed, error.what());
  }
}

void GroupState::seat_opened(const SeatOpened& news) {
  const auto is_below = [&](int number) { return number >= 0 && number < world_size(); };
  if (!is_below(news.host) || !is_below(news.place)) return fail(Errc::ProtocolError, "rank " + std::to_string(news.rank) + " spoke of a seat that there is not");
  seats[news.rank] = news;
  if (phase == Phase::Ending || static_cast<int>(seats.size()) < world_size()) return;
  tell_seats();
}

// A rank meets those at its place only: to tell all of all would be N² endpoints.
void GroupState::tell_seats() {
  int num_hosts = 0;
  for (const auto& [rank, seat] : seats) num_hosts = std::max(num_hosts, seat.host + 1);
  std::map<int, std::vector<std::string>> of_place;
  for (const auto& [rank, seat] : seats) {
    auto& endpoints = of_place[seat.place];
    endpoints.resize(static_cast<std::size_t>(num_hosts));
    endpoints[static_cast<std::size_t>(seat.host)] = seat.endpoint;
  }
  std::map<int, caf::message> news;
  for (auto& [place, endpoints] : of_place) news[place] = caf::make_message(SeatsKnown{order.attempt, std::move(endpoints)});
  for (const auto& [rank, seat] : seats) {
    if (const auto& actor = ranks[static_cast<std::size_t>(rank)]) self->send(actor, news[seat.place]);
  }
}

void GroupState::rank_started(const RankStarted& news) {
  started.insert(news.rank);
  watch.started(news.rank);
  pids[static_cast<std::size_t>(news.rank)] = news.pid;
  if (phase != Phase::Starting || static_cast<int>(started.size()) < world_size()) return;
  phase = Phase::Running;
  placer->all_started();
  self->send(trainer, GroupStarted{order.attempt, pids});
}

void GroupState::start_overdue() {
  const auto missing = missing_ranks(world_size(), started);
  if (phase != Phase::Starting || missing.empty()) return;
  if (placer && placer->is_preparing()) return wait_at_most(order.run.start_timeout, Wait::Start);
  fail(Errc::DeadlinePassed, did_not(missing, "start", order.run.start_timeout));
}

void GroupState::find_places(int count) {
  if (phase != Phase::Running) return;  // the attempt is about to end, and a later one asks again
  placer->find_places(count, [group = caf::actor_cast<caf::actor_addr>(self), attempt = order.attempt](int found, const std::string& why) {
    if (const auto alive = caf::actor_cast<caf::actor>(group)) caf::anon_send(alive, PlacesFound{attempt, found, why});
  });
}

// ---- barriers -----------------------------------------------------------------------------------------------

void GroupState::barrier_reached(BarrierReached news) {
  auto [found, fresh] = barriers.try_emplace(news.sequence);
  auto& barrier = found->second;
  if (fresh) barrier.deadline = self->clock().now() + order.run.collective_timeout;
  barrier.came.insert(news.rank);
  if (news.rank == 0) barrier.bytes = std::move(news.bytes);
  if (static_cast<int>(barrier.came.size()) == world_size()) {
    tell_ranks(BarrierPassed{order.attempt, news.sequence, std::move(barrier.bytes), Errc::Ok, {}});
    barriers.erase(found);
  } else if (!returned.empty()) {
    fail_barriers_without(returned);
  } else {
    watch_barriers();
  }
}

// Only those who came: to tell all of every late one would be N² messages.
void GroupState::tell_waiting(const Barrier& barrier, const BarrierPassed& news) {
  const auto shared = caf::make_message(news);
  for (const int rank : barrier.came) {
    if (const auto& actor = ranks[static_cast<std::size_t>(rank)]) self->send(actor, shared);
  }
}

void GroupState::watch_barriers() {
  if (barrier_timer_set || barriers.empty()) return;
  barrier_timer_set = true;
  const auto left = barriers.begin()->second.deadline - self->clock().now();  // the oldest is due first
  wait_at_most(std::chrono::duration_cast<std::chrono::milliseconds>(left) + std::chrono::milliseconds{1}, Wait::Barrier);
}

void GroupState::barriers_overdue() {
  barrier_timer_set = false;
  const auto now = self->clock().now();
  while (!barriers.empty() && barriers.begin()->second.deadline <= now) {
    const auto& [sequence, barrier] = *barriers.begin();
    const auto text = "barrier " + std::to_string(sequence) + ": " +
                      did_not(missing_ranks(world_size(), barrier.came), "come", order.run.collective_timeout);
    tell_waiting(barrier, BarrierPassed{order.attempt, sequence, {}, Errc::DeadlinePassed, text});
    barriers.erase(barriers.begin());
  }
  watch_barriers();
}

void GroupState::fail_barriers_without(const std::set<int>& gone) {
  for (const auto& [sequence, barrier] : barriers) {
    const auto text = "barrier " + std::to_string(sequence) + ": the train function of " + name_ranks(gone) +
                      " has returned while " + name_ranks(barrier.came) + " waited";
    tell_waiting(barrier, BarrierPassed{order.attempt, sequence, {}, Errc::CollectiveMismatch, text});
  }
  barriers.clear();
}

// ---- soft stop ----------------------------------------------------------------------------------------------

void GroupState::stop(const StopGroup& how) {
  if (phase == Phase::Ending) return;
  if (!how.is_patient && !std::exchange(stop_is_timed, true)) wait_at_most(order.run.stop_grace, Wait::Stop);
  if (phase == Phase::Stopping) return;
  phase = Phase::Stopping;
  stop_is_resize = how.is_resize;
  for (int rank = 0; rank < world_size(); ++rank) {
    if (const auto beat = watch.last_beat(rank)) steps_at_stop[rank] = beat->steps;
  }
  wait_at_most(heed_limit, Wait::Heed);
  tell_ranks(CountForStop{order.attempt});
}

void GroupState::stop_counted(int rank, std::uint64_t calls) {
  stop_counts.emplace(rank, calls);
  release_stop();
}

void GroupState::release_stop() {
  if (phase != Phase::Stopping || stop_after) return;
  const auto target = stop_target(world_size(), stop_counts);
  if (!target) return;
  stop_after = target;
  tell_ranks(StopAfter{order.attempt, *target, stop_is_resize});
}

// Of those whose progress can be seen.
std::string GroupState::say_unheeded() const {
  std::map<int, StopHeed> heed;
  for (int rank = 0; rank < world_size(); ++rank) {
    const auto beat = watch.last_beat(rank);
    const auto counted = stop_counts.find(rank);
    if (!beat || ended.contains(rank) || counted == stop_counts.end()) continue;
    const auto before = steps_at_stop.find(rank);
    heed[rank] = {beat->steps - std::min(beat->steps, before == steps_at_stop.end() ? 0 : before->second), beat->stop_calls > counted->second};
  }
  return unheeded_stop(heed);
}

void GroupState::stop_unheeded() {
  if (phase != Phase::Stopping) return;
  const auto why = say_unheeded();
  if (why.empty()) return;
  const std::string what = stop_is_resize ? "a stop for another number or another place of ranks" : "a stop";
  self->send(trainer, RunWarning{what + " was asked for " + std::to_string(heed_limit.count() / 1000) + " s ago, and " + why});
}

void GroupState::stop_overdue() {
  if (phase != Phase::Stopping) return;
  const auto why = say_unheeded();
  fail(Errc::Cancelled, did_not(missing_ranks(world_size(), ended), "stop", order.run.stop_grace) +
                            " of the stop request; ended by force" + (why.empty() ? "" : "; " + why));
}

// ---- end ----------------------------------------------------------------------------------------------------

void GroupState::rank_done(const RankDone& news) {
  stop_counts[news.rank] = news.calls;
  was_stopped = was_stopped || (stop_after && news.calls > *stop_after);
  returned.insert(news.rank);
  std::set<std::string> unused(news.unused_config_keys.begin(), news.unused_config_keys.end());
  if (!unused_keys) {
    unused_keys = std::move(unused);
  } else {
    std::erase_if(*unused_keys, [&](const std::string& key) { return !unused.contains(key); });
  }
  rank_ended(news.rank);
}

void GroupState::rank_lost(int rank, const RunError& error, std::optional<int> had_places) {
  if (had_places) places = had_places;
  num_not_started += error.code == Errc::StartFailed && !started.contains(rank);
  errors.push_back(error);
  if (!errors.back().rank) errors.back().rank = rank;
  complete_error_of_silent(rank);
  ranks[static_cast<std::size_t>(rank)] = nullptr;
  end_ranks("rank " + std::to_string(rank) + " failed: " + error.message);
  rank_ended(rank);
}

void GroupState::end_silent(int rank, RunError error) {
  const auto reason = error.message;
  has_ended_silent = true;
  errors.push_back(std::move(error));
  end_ranks(reason);
  // What hangs does not hear an abort.
  if (const auto& actor = ranks[static_cast<std::size_t>(rank)]) self->send(actor, AbortRank{order.attempt, reason, true});
}

// What its end has brought to light belongs to the error that says why it was ended.
void GroupState::complete_error_of_silent(int rank) {
  if (!has_ended_silent) return;
  const auto& end = errors.back();
  for (auto& error : errors) {
    if (&error == &end || error.rank != rank || error.code != Errc::DeadlinePassed) continue;
    error.last_lines = end.last_lines;
    error.pid = end.pid;
    error.details += end.details;
  }
}

void GroupState::fail(Errc code, const std::string& reason, bool at_once) {
  if (phase != Phase::Ending) {
    errors.emplace_back();
    errors.back().code = code;
    errors.back().message = reason;
  }
  end_ranks(reason, at_once);
}

void GroupState::end_ranks(const std::string& reason, bool at_once) {
  const bool hurried = at_once && !std::exchange(hurry, true);
  if (phase == Phase::Ending && !hurried) return;
  phase = Phase::Ending;
  if (placer) placer->abort(reason);
  tell_ranks(AbortRank{order.attempt, reason, at_once});
  end_limit = at_once ? at_once_limit : 2 * order.run.stop_grace;  // a process rank's own grace ends first
  wait_at_most(end_limit, Wait::End);
  for (int rank = 0; rank < world_size(); ++rank) {
    if (!ranks[static_cast<std::size_t>(rank)]) ended.insert(rank);  // never placed
  }
  if (static_cast<int>(ended.size()) == world_size()) finish();
}

void GroupState::end_overdue() {
  const auto stuck = missing_ranks(world_size(), ended);
  if (stuck.empty()) return;
  errors.emplace_back();
  errors.back().code = Errc::DeadlinePassed;
  errors.back().rank = *stuck.begin();
  errors.back().message = did_not(stuck, "end", end_limit) +
                          " after an abort; threads cannot be ended by force, placement as processes can";
  for (const auto& rank : ranks) {
    if (rank) self->send_exit(rank, caf::exit_reason::kill);
  }
  finish();
}

void GroupState::rank_ended(int rank) {
  ranks[static_cast<std::size_t>(rank)] = nullptr;
  ended.insert(rank);
  watch.ended(rank);
  if (static_cast<int>(ended.size()) == world_size()) return finish();
  if (!returned.empty()) fail_barriers_without(returned);
  release_stop();
}

void GroupState::exited(const caf::exit_msg& exit) {
  if (exit.source == trainer) return fail(Errc::Aborted, "the trainer has ended");
  if (rank_of.contains(exit.source.id())) return;  // its down_msg says the same
  if (exit.reason == caf::exit_reason::user_shutdown) fail(Errc::Aborted, "the worker group was asked to exit");
}

void GroupState::rank_down(const caf::down_msg& down) {
  const auto found = rank_of.find(down.source.id());
  const bool normal = !down.reason || down.reason == caf::exit_reason::normal;  // its last news is on the way, or was here
  if (normal || found == rank_of.end() || !ranks[static_cast<std::size_t>(found->second)]) return;
  RunError error;
  error.code = code_of(down.reason);
  error.message = "the rank's actor ended: " + self->system().render(down.reason);
  rank_lost(found->second, error);
}

void GroupState::finish() {
  if (!trainer) return;
  placer.reset();
  make_placer = nullptr;
  GroupEnded news{order.attempt, first_cause(errors, returned), {}, {}, was_stopped};
  news.places = places || num_not_started == 0 ? places : world_size() - num_not_started;
  watch.explain(news, errors);
  if (errors.empty() && unused_keys) news.unused_config_keys.assign(unused_keys->begin(), unused_keys->end());
  self->send(trainer, std::move(news));
  trainer = nullptr;
  self->quit();
}

}  // namespace troupe

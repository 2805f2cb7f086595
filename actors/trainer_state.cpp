#include "trainer_state.hpp"

#include "exceptions.hpp"

#include <troupe/records.hpp>

#include <algorithm>

namespace troupe {

namespace {

// Reports reach the keeper in batches: waking it, and the disk, for each would cost more than all the rest.
constexpr std::chrono::milliseconds keep_period{50};

}  // namespace

bool TrainerState::is_stale(Attempt of) {
  if (of == attempt && group) return false;
  ++stale;
  return true;
}

// ---- beginning ----------------------------------------------------------------------------------------------

void TrainerState::open() {
  began = self->clock().now();
  if (setup.seed) random.seed(*setup.seed);
  if (setup.run.time_limit.count() > 0) self->delayed_send(self, setup.run.time_limit, TimeIsUp{});
  keeper = setup.spawn_keeper(self->system(), caf::actor_cast<caf::actor>(self));
  self->send(keeper, OpenRun{setup.run});
}

void TrainerState::opened(RunOpened news) {
  run_name = news.name;
  result.path = news.path;
  result.history = std::move(news.contents.history);
  num_kept = result.history.size();
  result.checkpoints = std::move(news.contents.checkpoints);
  warnings = std::move(news.contents.warnings);
  next_report_index = news.contents.next_report_index;
  attempt = news.contents.next_attempt - 1;
  snapshots = std::move(news.snapshots);
  snapshot = std::move(news.snapshot);
  if (snapshot) next_report_index = std::max(next_report_index, snapshot->reports);
  world_size = wanted_world_size > 0 ? wanted_world_size : setup.scaling.num_workers;
  if (stop_requests > 0) return finish();
  start_attempt();
}

void TrainerState::start_attempt() {
  phase = Phase::Running;
  ++attempt;
  StartGroup order;
  order.attempt = attempt;
  order.function = setup.function;
  order.config_json = setup.config_json;
  order.run_name = run_name;
  order.run_directory = result.path.string();
  const auto copy = attempt_began_from = newest_copy(result.checkpoints, snapshot);
  if (copy) {
    order.resume_checkpoint = copy->path.string();
    order.previous_world_size = copy->world_size > 0 ? copy->world_size : copied_world_size;
  }
  order.first_report_index = next_report_index;
  order.scaling = setup.scaling;
  order.scaling.num_workers = world_size;
  order.run = setup.run;
  order.snapshots = snapshots;
  order.data = setup.data;
  order.is_fresh = std::exchange(is_next_fresh, false);
  reports_came = growth.is_looking = checkpoint_due = false;
  assembly.begin(world_size);
  const auto resumes_from = order.resume_checkpoint.value_or("");
  note({{"event", "attempt_began"}, {"attempt", attempt}, {"world_size", world_size}, {"resumes_from", resumes_from}});
  group = spawn_worker_group(self->system(), caf::actor_cast<caf::actor>(self), setup.make_placer);
  self->send(group, std::move(order));
  tell_listeners(RunStarted{attempt, run_name, result.path.string(), std::exchange(warnings, {}),
                            world_size, resumes_from});
}

// ---- an attempt runs ----------------------------------------------------------------------------------------

void TrainerState::group_started(const GroupStarted& news) {
  note({{"event", "group_started"}, {"attempt", attempt}, {"pids", news.pids}});
  watch_growth();
}

void TrainerState::reported(Reported news) {
  reports_came = true;
  next_report_index = std::max(next_report_index, news.index + 1);
  const std::chrono::duration<double> since = self->clock().now() - began;
  ReportRecord record{news.attempt, news.rank, news.index, since.count(), std::move(news.metrics), std::nullopt};
  if (news.checkpoint) record.checkpoint = Checkpoint{result.path / checkpoint_name(news.index)};
  result.history.push_back(record);
  if (!std::exchange(keep_due, true)) self->delayed_send(self, keep_period, KeepDue{});
  tell_listeners(ReportArrived{std::move(record)});
  const auto& metrics = result.history.back().metrics;
  try {
    if (!news.checkpoint) return assembly.pass(news.rank, news.index);
    if (news.pending) {
      assembly.announce(news.rank, news.index, metrics, *news.checkpoint, news.num_writers, self->clock().now());
    } else {
      commit(assembly.add(news.rank, news.index, metrics, *news.checkpoint, news.num_writers, self->clock().now()));
    }
    watch_checkpoints();
  } catch (const Failure& failure) {
    fail(failure.code(), failure.what());
  }
}

// One timer, for the oldest.
void TrainerState::watch_checkpoints() {
  const auto oldest = assembly.oldest_incomplete();
  if (checkpoint_due || !oldest) return;
  checkpoint_due = true;
  const auto left = std::max(caf::actor_clock::duration_type{0}, *oldest + setup.run.collective_timeout - self->clock().now());
  self->delayed_send(self, std::chrono::ceil<std::chrono::milliseconds>(left), CheckpointDue{attempt});
}

void TrainerState::checkpoint_overdue(Attempt due) {
  if (due != attempt || phase != Phase::Running) return;
  checkpoint_due = false;
  const auto limit = setup.run.collective_timeout;
  if (const auto text = assembly.overdue(self->clock().now() - limit); !text.empty()) {
    return fail(Errc::DeadlinePassed, text + " within " + std::to_string(limit.count()) + " ms (RunConfig.collective_timeout) of the first");
  }
  watch_checkpoints();
}

void TrainerState::commit(std::optional<CompleteCheckpoint> complete) {
  if (!complete) return;
  keep_reports();
  tell_keeper(CommitCheckpoint{std::move(*complete)});
}

void TrainerState::checkpoint_written(const CheckpointWritten& news) {
  if (news.error == Errc::Ok) return commit(assembly.written(news.rank, news.index));
  if (auto given_up = assembly.give_up(news.index)) {
    tell_keeper(DiscardCheckpoint{std::move(*given_up)});
    checkpoint_failed(news.index, news.error, "rank " + std::to_string(news.rank) + ": " + news.text);
  }
}

void TrainerState::warned(const RunWarning& news) {
  result.warnings.push_back(news.text);
  tell_listeners(news);
}

void TrainerState::checkpoint_failed(std::uint64_t index, Errc error, const std::string& text) {
  result.warnings.push_back("the checkpoint of report " + std::to_string(index) + " was not kept: " + text);
  for (auto& record : result.history) {
    if (record.index == index) record.checkpoint.reset();
  }
  tell_listeners(CheckpointFailed{index, error, text});
}

void TrainerState::keep_reports() {
  const auto begin = result.history.begin() + static_cast<std::ptrdiff_t>(num_kept);
  if (begin == result.history.end() || phase == Phase::Finishing) return;
  tell_keeper(KeepReports{{begin, result.history.end()}});
  num_kept = result.history.size();
}

void TrainerState::checkpoint_kept(const CheckpointKept& news) {
  auto& kept = result.checkpoints;
  kept.push_back(news.checkpoint);
  std::ranges::sort(kept, {}, &CheckpointRecord::index);  // saves that overlap may be committed in another order
  std::erase_if(kept, [&](const CheckpointRecord& record) {
    return std::find(news.removed.begin(), news.removed.end(), record.index) != news.removed.end();
  });
  tell_listeners(CheckpointCommitted{news.checkpoint});
}

void TrainerState::stop(const StopRun& order) {
  ++stop_requests;
  if (order.is_preemption && phase != Phase::Finishing) result.preempted = true;
  note({{"event", "stop_requested"}, {"reason", order.reason}, {"preemption", order.is_preemption}});
  if (phase == Phase::Pausing) return finish();
  if (phase == Phase::Finishing && stop_requests > 1 && keeper) self->send(keeper, GiveUpUploads{});
  if (!group) return;
  if (stop_requests == 1) {
    self->send(group, StopGroup{attempt});
  } else {
    self->send(group, AbortGroup{attempt, order.reason.empty() ? "a second stop was requested" : order.reason, true});
  }
}

void TrainerState::resize(const ResizeRun& order) {
  const int least = std::max(1, setup.scaling.min_workers);
  if (setup.scaling.min_workers == 0 || order.num_workers < least || order.num_workers > setup.scaling.num_workers) {
    return warned({"a resize to " + std::to_string(order.num_workers) + " ranks was refused: " +
                   (setup.scaling.min_workers == 0 ? "the run is not elastic (ScalingConfig::min_workers is 0)"
                                                   : "it must be from " + std::to_string(least) + " to " +
                                                         std::to_string(setup.scaling.num_workers))});
  }
  note({{"event", "resize_requested"}, {"num_workers", order.num_workers}});
  wanted_world_size = resized_to = order.num_workers;
  growth.failed_tries = 0;
  growth.is_agreed = false;
  plan_growth(true);
  if (phase != Phase::Running) {
    world_size = phase == Phase::Pausing || phase == Phase::Opening ? wanted_world_size : world_size;
  } else if (is_resizing() && group) {
    self->send(group, StopGroup{attempt, true});
  }
}

// As a resize to the number that there is. In every other phase the next attempt is placed anew anyway.
void TrainerState::move(const MoveRanks& order) {
  note({{"event", "move_requested"}, {"reason", order.reason}});
  if (phase != Phase::Running || !group || own_error || stop_requests > 0) return;
  warned({order.reason + "; ranks go on elsewhere from the next step boundary on"});
  if (wanted_world_size == 0) wanted_world_size = world_size;
  self->send(group, StopGroup{attempt, true, true});
}

void TrainerState::fail(Errc code, const std::string& text) {
  if (own_error) return;  // the first cause stays
  own_error.emplace();
  own_error->code = code;
  own_error->message = text;
  if (group) self->send(group, AbortGroup{attempt, text});
}

// ---- an attempt has ended -----------------------------------------------------------------------------------

void TrainerState::group_ended(const GroupEnded& news) {
  group = nullptr;
  last_error = news.error;
  last_places = news.places;
  unused_config_keys = news.unused_config_keys;
  was_stopped = news.was_stopped;
  if (const auto lost = assembly.incomplete(); !lost.empty() && !last_error) {
    fail(Errc::InvalidArgument, lost.front() + "; every writer must report it");
  }
  assembly.begin(world_size);
  other_errors = news.other_errors;
  phase = Phase::Settling;
  if (!keeper) return finish();
  keep_reports();
  tell_keeper(SettleRun{});
}

int TrainerState::count_in_window(const std::vector<caf::actor_clock::time_point>& times) const {
  const auto window = setup.run.failure.failure_window;
  const auto since = self->clock().now() - window;
  return static_cast<int>(std::count_if(times.begin(), times.end(), [&](auto time) { return window.count() == 0 || time >= since; }));
}

FailuresSoFar TrainerState::failures_so_far() const { return {count_in_window(failures), fruitless}; }

void TrainerState::settled(RunSettled news) {
  const auto steps_before = snapshot ? snapshot->steps : 0;
  const bool is_newer = news.snapshot && (!snapshot || news.snapshot->path != snapshot->path || news.snapshot->steps != steps_before);
  const bool got_on = reports_came || is_newer || (last_error && last_error->step.value_or(0) > 0);
  snapshot = std::move(news.snapshot);
  copied_world_size = world_size;
  const bool stopped = own_error || stop_requests > 0;
  // Stopped for a resize, which may have been taken back since; or ended by force, since a step took longer than stop_grace.
  const bool forced = last_error && last_error->code == Errc::Cancelled;
  if (!stopped && wanted_world_size > 0 && (forced || (!last_error && was_stopped))) {
    if (forced) warned({"ranks were ended by force to go on with others: " + last_error->message});
    (void)take_growth_back(true);
    take_wanted_size();
    return start_attempt();
  }
  const bool goes_on = goes_on_after_failure(got_on) && !stopped;
  auto error = last_error ? to_json(*last_error) : nlohmann::ordered_json{};
  if (last_error) error.erase("details");  // the post-mortem has them
  note({{"event", "attempt_ended"}, {"attempt", attempt}, {"verdict", verdict.reason}, {"error", std::move(error)}});
  if (!goes_on) return finish();
  warnings.push_back("attempt " + std::to_string(attempt) + " failed (" + last_error->message + "): " + verdict.reason +
                     ", starting again; " + post_mortem_name(attempt) + ".md says more");
  write_post_mortem(*last_error, true, verdict.reason);
  phase = Phase::Pausing;
  const double jitter = std::uniform_real_distribution{-1.0, 1.0}(random);
  self->delayed_send(self, retry_delay(fruitless, jitter), RetryDue{attempt});
}

bool TrainerState::goes_on_after_failure(bool got_on) {
  const bool stopped = own_error || stop_requests > 0;
  if (!stopped && take_growth_back(got_on)) return true;
  const auto now = self->clock().now();
  auto before = failures_so_far();
  if (last_error) before.same = failures_by_code[last_error->code]++;
  verdict = after_group_ended(last_error, stop_requests > 0, got_on, before, setup.run.failure);
  if (verdict.step == NextStep::Retry && must_end_program(last_error->code, setup.scaling.placement)) {
    verdict = {NextStep::Fail, "ranks are threads of this program, whose GPU context is lost; Placement::Processes replaces the process and goes on"};
  }
  fruitless = got_on ? 0 : fruitless + 1;
  const int ran = world_size;
  const int next = next_world_size(last_error, world_size, last_places, fruitless, setup.scaling);
  if (last_error && next < world_size && !stopped) {
    verdict = {NextStep::Retry, "going on with " + std::to_string(next) + " ranks instead of " + std::to_string(world_size)};
    wanted_world_size = world_size = next;
    growth.is_agreed = false;
    fruitless = std::min(fruitless, 1);
  } else {
    if (verdict.step == NextStep::Retry && !stopped) escalate();
    if (is_resizing()) take_wanted_size();
  }
  if (world_size != ran) failures_by_rank.clear();  // ranks are others now
  if (world_size < ran) plan_growth(true);
  if (verdict.step == NextStep::Retry) failures.push_back(now);
  return verdict.step == NextStep::Retry;
}

// Which of them failed so often that more than it is started anew.
void TrainerState::escalate() {
  const auto now = self->clock().now();
  const auto rank = last_error->rank;
  RestartCounts before;
  if (rank) before.of_rank = count_in_window(failures_by_rank[*rank]);
  before.of_group = count_in_window(renewals);
  const auto escalation = restart_level(rank, before, setup.run.failure);
  if (rank) failures_by_rank[*rank].push_back(now);
  if (escalation.level == RestartLevel::Rank) return;
  verdict.reason += "; " + escalation.reason;
  failures_by_rank.clear();
  if (escalation.level == RestartLevel::Group) {
    renewals.push_back(now);
    is_next_fresh = true;
  } else if (setup.scaling.min_workers > 0 && world_size > setup.scaling.min_workers) {
    renewals.clear();
    wanted_world_size = world_size = world_size - 1;
    growth.is_agreed = false;
    verdict.reason += "; going on with " + std::to_string(world_size) + " ranks";
  } else {
    verdict.step = NextStep::Fail;
  }
}

void TrainerState::note(nlohmann::ordered_json event) {
  const std::chrono::duration<double> since = self->clock().now() - began;
  event["time_s"] = since.count();
  event["unix_time_s"] = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  if (phase != Phase::Finishing && keeper) self->send(keeper, KeepEvent{event.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)});
}

void TrainerState::retry(Attempt due) {
  if (phase == Phase::Pausing && due == attempt) start_attempt();
}

void TrainerState::storage_failed(const StorageFailed& news) {
  fail(news.code, news.text);
  if (phase == Phase::Opening || phase == Phase::Finishing) {
    result.error = own_error;
    finished();
  } else if (phase == Phase::Pausing) {
    finish();
  }
}

// What would wait for its answer waits no more.
void TrainerState::keeper_ended(Errc code, const std::string& why) {
  keeper = nullptr;
  storage_failed({code, "the checkpoint keeper ended: " + why});
  if (phase == Phase::Settling) finish();
}

void TrainerState::finish() {
  phase = Phase::Finishing;
  setup.make_placer = nullptr;  // and with it the ranks' processes
  result.metrics = latest_metrics(result.history);
  if (!result.checkpoints.empty()) result.checkpoint = result.checkpoints.back();
  result.best_checkpoints = worst_to_best(result.checkpoints, setup.run.checkpoint);
  if (!result.best_checkpoints.empty()) result.best_checkpoint = result.best_checkpoints.back();
  result.stopped_early = stop_requests > 0;
  result.preempted = result.preempted && result.stopped_early;
  result.error = own_error ? own_error : last_error;
  // What a stop request ended is no error.
  const bool ended_by_stop = result.error && (result.error->code == Errc::Cancelled || result.error->code == Errc::Aborted);
  if (result.stopped_early && ended_by_stop) result.error.reset();
  if (result.error) write_post_mortem(*result.error, false, own_error || !last_error ? "it cannot go on" : verdict.reason);
  const auto copy = newest_copy(result.checkpoints, snapshot);
  const bool keep_snapshot = result.preempted && snapshot && copy->path == snapshot->path;
  if (!keeper) return finished();
  tell_keeper(FinishRun{result, keep_snapshot});
}

void TrainerState::finished() {
  tell_listeners(RunEnded{std::move(result), std::move(unused_config_keys)});
  keeper = nullptr;
  self->quit();
}

void TrainerState::exited(const caf::exit_msg& exit) {
  const auto why = self->system().render(exit.reason);
  const bool normal = !exit.reason || exit.reason == caf::exit_reason::normal;
  if (group && exit.source == group) {
    if (normal) return;  // its GroupEnded is on the way
    RunError error;
    error.code = code_of(exit.reason);
    error.message = "the worker group ended: " + why;
    group_ended({attempt, std::move(error), {}, {}});
  } else if (keeper && exit.source == keeper) {
    if (!normal) keeper_ended(code_of(exit.reason), why);
  } else if (!normal) {
    stop_requests = std::max(stop_requests, 1);
    stop({"the trainer was asked to exit: " + why});  // at once
  }
}

}  // namespace troupe

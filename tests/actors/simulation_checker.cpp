#include "simulation_checker.hpp"

#include <algorithm>

#include "../../actors/trainer_state.hpp"
#include "../../actors/worker_group_state.hpp"

namespace troupe::sim {

namespace {

std::string list(const std::set<std::uint64_t>& indices) {
  std::string text;
  for (const auto index : indices) text += (text.empty() ? "" : ", ") + std::to_string(index);
  return "{" + text + "}";
}

template <class State>
const State* state_of(const Delivery& delivery) {
  const auto* actor = dynamic_cast<const caf::stateful_actor<State>*>(&delivery.receiver);
  return actor ? &actor->state : nullptr;
}

}  // namespace

Checker::Checker(World& world, Disk& disk, Stage& stage, Ledger& ledger, const ScalingConfig& scaling, const RunConfig& run, bool faulty_disk)
    : world_(world), disk_(disk), stage_(stage), ledger_(ledger), scaling_(scaling), run_(run), faulty_disk_(faulty_disk), loaded_(disk.reports), found_(disk.visible()) {
  stage_.complain = [this](const std::string& what) { violate(what); };
  for (const auto index : ledger_.acknowledged) {
    if (!found_.contains(index)) violate("checkpoint " + std::to_string(index) + " was acknowledged, and the next driver finds " + list(found_));
  }
}

void Checker::violate(const std::string& what) {
  if (!violation_) violation_ = what;
  world_.note("VIOLATION: " + what);
}

std::string Checker::name_of(const Report& report) {
  return "report " + std::to_string(report.index) + " of rank " + std::to_string(report.rank) + " in attempt " + std::to_string(report.attempt);
}

// ---- messages -----------------------------------------------------------------------------------------------

void Checker::before(const Delivery& delivery) {
  if (delivery.to("troupe.group")) return group_gets(delivery);
  if (delivery.to("troupe.trainer")) return trainer_gets(delivery);
  if (delivery.to("troupe.keeper")) disk_may_have_changed_ = true;
}

void Checker::group_gets(const Delivery& delivery) {
  if (const auto* start = delivery.as<StartGroup>()) {
    group_began(*start);
  }
  const auto* group = state_of<GroupState>(delivery);
  if (!group || !group->trainer) return;
  const auto current = group->order.attempt;
  if (const auto* news = delivery.as<Reported>(); news && news->attempt == current) {
    forwarded_.push_back({news->attempt, news->rank, news->index});
    ++reports_seen_[{news->attempt, news->rank}];
  } else if (const auto* done = delivery.as<RankDone>(); done && done->attempt == current) {
    ranks_returned_[{done->attempt, done->rank}] = done->calls;
    rank_ended({done->attempt, done->rank}, true);
  } else if (const auto* lost = delivery.as<RankLost>(); lost && lost->attempt == current) {
    rank_ended({lost->attempt, lost->rank}, false);
  }
}

bool Checker::is_complete() const {
  for (int rank = 0; rank < world_size_; ++rank) {
    if (!stage_.completed.contains({attempt_, rank})) return false;
  }
  return world_size_ > 0;
}

void Checker::group_began(const StartGroup& order) {
  const auto what = "attempt " + std::to_string(order.attempt);
  if (order.attempt <= attempt_) violate(what + " came after " + std::to_string(attempt_));
  if (stage_.placers != 0) violate(what + " began while the one before still had its placer");
  if (ended_well_ && is_complete()) violate(what + " repeats a training that was complete");
  if (!faulty_disk_ && stage_.ranks.empty() && disk_.has_staging()) violate(what + " began with what the one before left in .staging");
  if (order.scaling.min_workers == 0 && run_.failure.max_failures >= 0 && run_.failure.failure_window.count() == 0 &&
      num_attempts_ > run_.failure.max_failures) {
    violate(what + " is one too many");
  }
  check_resume(order);
  check_size(order);
  ended_well_ = false;
  attempt_ = order.attempt;
  world_size_ = order.scaling.num_workers;
  stage_.fate_ended_early = false;
  ++num_attempts_;
}

// An attempt that grew and got nowhere counts as no failure, and the ranks of before go on.
void Checker::check_growths_failure(const Delivery& delivery, const TrainerState& trainer) {
  if (const auto* ended = delivery.as<GroupEnded>(); ended && ended->attempt == attempt_ && trainer.group) {
    failures_ = trainer.failures.size();
    grown_in_vain_ = grew_from_ > 0 && ended->error && ended->error->code != Errc::Cancelled && !ended->error->step.value_or(0) && !trainer.reports_came && !trainer.snapshots.every;
  }
  const auto* due = delivery.as<RetryDue>();
  if (!due || due->attempt != attempt_ || !std::exchange(grown_in_vain_, false) || resized_) return;
  const auto what = "attempt " + std::to_string(attempt_) + ", which grew from " + std::to_string(grew_from_) + " ranks and got nowhere,";
  if (trainer.failures.size() != failures_) violate(what + " counts as a failure");
  if (trainer.world_size != grew_from_) violate(what + " is followed by one of " + std::to_string(trainer.world_size));
}

// Fewer ranks than allowed never run, nor more than wanted; more than before only in places that were found, or on request.
void Checker::check_size(const StartGroup& order) {
  const int now = order.scaling.num_workers;
  const auto what = "attempt " + std::to_string(order.attempt) + " with " + std::to_string(now) + " ranks after " + std::to_string(world_size_);
  const int least = scaling_.min_workers > 0 ? scaling_.min_workers : scaling_.num_workers;
  if (now < least || now > scaling_.num_workers) violate(what + " is not of an allowed size");
  const bool grows = world_size_ > 0 && now > world_size_;
  if (grows && !resized_ && (now > world_size_ + places_found_ || (resized_to_ > 0 && now > resized_to_))) violate(what + " was not to grow so far");
  grew_from_ = grows && !resized_ ? world_size_ : 0;
  num_growths_ += grew_from_ > 0;
  places_found_ = 0;
  resized_ = false;
}

void Checker::group_ended(const GroupEnded& news) {
  const auto what = "attempt " + std::to_string(news.attempt);
  if (!groups_ended_.insert(news.attempt).second) violate(what + " has ended twice");
  if (stage_.placers != 0) violate(what + " has ended, and its placer has not");
  ended_well_ = !news.error;
  if (news.error) return;
  std::set<std::uint64_t> calls;
  for (int rank = 0; rank < world_size_; ++rank) {
    if (!ranks_returned_.contains({news.attempt, rank})) violate(what + " ended well, and rank " + std::to_string(rank) + " never returned");
    calls.insert(ranks_returned_[{news.attempt, rank}]);
  }
  if (calls.size() > 1 && !stage_.fate_ended_early) violate(what + " was stopped after " + list(calls) + " calls of should_stop()");
}

void Checker::rank_ended(const Key& rank, bool returned) {
  const auto who = "rank " + std::to_string(rank.second) + " of attempt " + std::to_string(rank.first);
  if (++ranks_ended_[rank] > 1) violate(who + " has ended twice");
  if (!returned) return;
  if (reports_seen_[rank] != stage_.reports[rank]) {
    violate(who + " returned after " + std::to_string(stage_.reports[rank]) + " reports, of which its group saw " + std::to_string(reports_seen_[rank]));
  }
}

void Checker::trainer_gets(const Delivery& delivery) {
  const auto* trainer = state_of<TrainerState>(delivery);
  if (!trainer) return;
  const auto* stop = delivery.as<StopRun>();
  if ((stop || delivery.as<TimeIsUp>()) && trainer->phase != TrainerState::Phase::Finishing) {
    stop_counts_ = true;
    if (!stop || stop->is_preemption) preemption_counts_ = true;
  }
  if (const auto* exit = delivery.as<caf::exit_msg>()) {
    const bool own = exit->source == trainer->group || exit->source == trainer->keeper;
    if (!own && exit->reason && exit->reason != caf::exit_reason::normal && trainer->phase != TrainerState::Phase::Finishing) stop_counts_ = true;
  }
  if (const auto* found = delivery.as<PlacesFound>(); found && found->attempt == attempt_ && trainer->group) places_found_ = found->count;
  if (const auto* resize = delivery.as<ResizeRun>(); resize && scaling_.min_workers > 0 && resize->num_workers >= scaling_.min_workers) {
    resized_ = true;
    resized_to_ = resize->num_workers;
  }
  check_growths_failure(delivery, *trainer);
  if (const auto* ended = delivery.as<GroupEnded>(); ended && ended->attempt == attempt_ && trainer->group) {
    group_ended(*ended);
  }
}

// From the copy with the most steps, of those that are there.
void Checker::check_resume(const StartGroup& order) {
  const auto& chosen = order.resume_checkpoint;
  const auto steps = chosen ? stage_.steps_in(*chosen) : 0;
  const auto what = "attempt " + std::to_string(order.attempt);
  if (!steps) return violate(what + " is to go on from " + *chosen + ", where nothing is");
  std::vector<std::string> others;
  if (!ledger_.acknowledged.empty()) others.push_back((disk_.run / checkpoint_name(*ledger_.acknowledged.rbegin())).string());
  if (const auto snapshot = order.snapshots.every > 0 ? disk_.memory.newest() : std::nullopt) others.push_back(snapshot->path.string());
  for (const auto& other : others) {
    if (const auto more = stage_.steps_in(other); more > steps) {
      violate(what + " goes on from " + chosen.value_or("the beginning") + " after " + std::to_string(*steps) + " steps though " + other + " has " +
              std::to_string(*more));
    }
  }
}

// ---- disk ---------------------------------------------------------------------------------------------------

DiskNews Checker::disk_news() {
  DiskNews news;
  news.committing = [this](const CompleteCheckpoint& checkpoint) { check_commit(checkpoint); };
  news.committed = [this](const CheckpointRecord& record) {
    ledger_.records.push_back(record);
    std::ranges::sort(ledger_.records, {}, &CheckpointRecord::index);
    committed_here_.insert(record.index);
  };
  news.removing = [this](std::uint64_t index) {
    const auto what = "checkpoint " + std::to_string(index);
    const auto allowed = checkpoints_to_delete(ledger_.records, run_.checkpoint);
    if (std::ranges::find(allowed, index) == allowed.end()) violate(what + " is removed against the retention rule");
    if (!disk_.durable().contains(ledger_.records.back().index)) violate(what + " is removed before a newer one is durable");
  };
  news.removed = [this](std::uint64_t index) {
    ledger_.doomed.insert(index);
    ledger_.acknowledged.erase(index);
    std::erase_if(ledger_.records, [&](const auto& record) { return record.index == index; });
  };
  return news;
}

void Checker::check_commit(const CompleteCheckpoint& checkpoint) {
  const auto what = "checkpoint " + std::to_string(checkpoint.index);
  if (!ledger_.committed_once.insert(checkpoint.index).second) violate(what + " is committed twice");
  const auto wanted = "attempt=" + std::to_string(attempt_);
  std::size_t parts = 0;
  std::set<std::string> directories;
  for (const auto& [rank, directory] : checkpoint.directories) directories.insert(directory);
  for (const auto& directory : directories) {
    for (const auto& [who, attempt] : disk_.read(directory)) {
      ++parts;
      if (attempt != wanted) violate(what + " of " + attempt + " is committed by " + wanted);
    }
  }
  if (parts < checkpoint.directories.size()) {
    violate(what + " is committed with " + std::to_string(parts) + " of " + std::to_string(checkpoint.directories.size()) + " parts");
  }
}

void Checker::check_disk() {
  const auto durable = disk_.durable();
  for (const auto index : ledger_.acknowledged) {
    if (!durable.contains(index)) violate("checkpoint " + std::to_string(index) + " was acknowledged and would not survive a power cut; " + list(durable) + " would");
  }
}

void Checker::after() {
  if (!disk_may_have_changed_) return;
  disk_may_have_changed_ = false;
  if (std::exchange(checked_changes_, disk_.files.num_changes()) != checked_changes_) check_disk();
}

// ---- the listener -------------------------------------------------------------------------------------------

void Checker::listener_alive(const char* news) {
  if (result_) violate(std::string(news) + " came after RunEnded");
}

void Checker::heard(const RunStarted&) { listener_alive("RunStarted"); }

void Checker::heard(const ReportArrived& news) {
  listener_alive("ReportArrived");
  const auto& record = news.report;
  const Report report{record.attempt, record.rank, record.index};
  const auto place = arrived_.size();
  arrived_.push_back(record);
  if (place >= forwarded_.size() || !(forwarded_[place] == report)) {
    violate(name_of(report) + " arrived as number " + std::to_string(place) +
            (place < forwarded_.size() ? ", expected was " + name_of(forwarded_[place]) : ", and no rank had sent it"));
  }
  if (record.metrics.number("attempt") != static_cast<double>(record.attempt) || record.metrics.number("rank") != static_cast<double>(record.rank)) {
    violate(name_of(report) + " is really of attempt " + std::to_string(record.metrics.number("attempt").value_or(-1)));
  }
  const auto [last, fresh] = last_index_.try_emplace({record.attempt, record.rank}, record.index);
  if (!fresh && record.index <= last->second) violate(name_of(report) + " arrived after report " + std::to_string(last->second));
  last->second = record.index;
}

void Checker::heard(const CheckpointCommitted& news) {
  listener_alive("CheckpointCommitted");
  const auto index = news.checkpoint.index;
  const auto what = "checkpoint " + std::to_string(index);
  if (!ledger_.told.insert(index).second) violate(what + " was acknowledged twice");
  if (ledger_.doomed.contains(index)) return;
  ledger_.acknowledged.insert(index);
  if (!disk_.durable().contains(index)) violate(what + " is acknowledged and would not survive a power cut");
}

void Checker::heard(const CheckpointFailed& news) {
  listener_alive("CheckpointFailed");
  ++warnings_;
  if (ledger_.told.contains(news.index)) violate("checkpoint " + std::to_string(news.index) + " failed after it was acknowledged");
}

void Checker::heard(const RunWarning&) {
  listener_alive("RunWarning");
  ++warnings_;
}

void Checker::heard(const RunEnded& news) {
  listener_alive("RunEnded");
  result_ = news.result;
  check_result(news.result);
}

void Checker::check_result(const Result& result) {
  if (arrived_.size() != forwarded_.size()) {
    violate(std::to_string(forwarded_.size()) + " reports reached the groups, " + std::to_string(arrived_.size()) + " the listener");
  }
  if (result.history.size() != loaded_.size() + arrived_.size()) violate("the result has " + std::to_string(result.history.size()) + " reports");
  for (std::size_t i = 0; i < arrived_.size() && loaded_.size() + i < result.history.size(); ++i) {
    const auto& record = result.history[loaded_.size() + i];
    if (record.attempt != arrived_[i].attempt || record.rank != arrived_[i].rank || record.index != arrived_[i].index) {
      violate("report " + std::to_string(i) + " of the result is not the one that arrived");
    }
  }
  std::set<std::uint64_t> kept, expected = ledger_.acknowledged;
  for (const auto& record : result.checkpoints) kept.insert(record.index);
  for (const auto index : found_) {
    if (!ledger_.doomed.contains(index)) expected.insert(index);
  }
  if (kept != expected) violate("the result has checkpoints " + list(kept) + ", acknowledged are " + list(expected));
  if (result.checkpoint.has_value() == kept.empty() || (result.checkpoint && result.checkpoint->index != *kept.rbegin())) {
    violate("the result's latest checkpoint is not the newest of " + list(kept));
  }
  if (static_cast<int>(result.warnings.size()) != warnings_) {
    violate("the result has " + std::to_string(result.warnings.size()) + " warnings, the listener heard " + std::to_string(warnings_));
  }
  if (result.stopped_early != stop_counts_) violate(std::string("the result says stopped_early ") + (result.stopped_early ? "true" : "false"));
  if (result.error && (result.error->code == Errc::Ok || result.error->message.empty())) violate("the result's error says nothing");
  if (!result.error && !result.stopped_early && !is_complete() && !stage_.fate_ended_early) violate("the result is fine, and the training is not complete");
  if (result.error && result.error->code == Errc::Cancelled && !result.stopped_early) violate("the run was cancelled, and nobody had stopped it");
  if (result.preempted != (preemption_counts_ && stop_counts_)) violate(std::string("the result says preempted ") + (result.preempted ? "true" : "false"));
  if (disk_.has_result && disk_.reports.size() != result.history.size()) {
    violate("reports.jsonl has " + std::to_string(disk_.reports.size()) + " of " + std::to_string(result.history.size()) + " reports");
  }
  if (disk_.has_result && result.ok() && !result.preempted && !disk_.memory.empty()) violate("snapshots are left in memory");
  if (!faulty_disk_ && disk_.has_result && disk_.has_staging()) violate("something is left in .staging");
}

}  // namespace troupe::sim

#include "group_watch.hpp"

#include "worker_group_state.hpp"

namespace troupe {

namespace {

constexpr std::chrono::milliseconds stacks_limit{700};
constexpr int most_told = 8;  // other ranks whose events are shown

}  // namespace

void GroupWatch::begin() {
  silence_ = RankWatch{group_.order.scaling.num_workers, group_.order.run.step_timeout};
  pace_ = StragglerWatch{group_.order.scaling.num_workers};
  group_.self->delayed_send(group_.self, silence_.period(), LookDue{});
}

void GroupWatch::started(int rank) { silence_.started(rank); }

void GroupWatch::ended(int rank) { silence_.ended(rank); }

void GroupWatch::beat(const Beat& news) {
  silence_.beat(news.rank, news.beat);
  pace_.beat(news.rank, news.beat, group_.self->clock().now());
  last_[news.rank] = news.beat;
}

std::optional<RankBeat> GroupWatch::last_beat(int rank) const {
  const auto found = last_.find(rank);
  return found == last_.end() ? std::nullopt : std::optional{found->second};
}

void GroupWatch::look() {
  if (group_.phase == GroupState::Phase::Ending) return;
  group_.self->delayed_send(group_.self, silence_.period(), LookDue{});
  const auto now = group_.self->clock().now();
  if (!suspect_) {
    std::set<int> in_barrier;
    for (const auto& [sequence, barrier] : group_.barriers) in_barrier.insert(barrier.came.begin(), barrier.came.end());
    suspect_ = silence_.look(now, in_barrier);
    if (suspect_) {
      suspects_progress_ = last_[suspect_->rank].progress;
      const auto& rank = group_.ranks[static_cast<std::size_t>(suspect_->rank)];
      group_.self->send(rank, AskStacks{group_.order.attempt});
      group_.self->delayed_send(group_.self, stacks_limit, StacksOverdue{});
    }
  }
  for (const auto& straggler : pace_.look(now)) group_.self->send(group_.trainer, RunWarning{straggler.text});
  for (int rank = 0; rank < static_cast<int>(group_.ranks.size()); ++rank) {
    if (group_.started.contains(rank) && !group_.ended.contains(rank)) group_.self->send(group_.ranks[static_cast<std::size_t>(rank)], AskBeat{group_.order.attempt});
  }
}

void GroupWatch::stacks_told(int rank, const std::string& text) {
  if (suspect_ && suspect_->rank == rank) blame(text);
}

void GroupWatch::stacks_overdue() {
  if (suspect_) blame("its stacks did not come\n");
}

void GroupWatch::blame(const std::string& stacks) {
  const auto suspect = *std::exchange(suspect_, std::nullopt);
  if (group_.phase == GroupState::Phase::Ending || group_.ended.contains(suspect.rank)) return;
  if (last_[suspect.rank].progress != suspects_progress_) return;  // it came back meanwhile
  RunError error;
  error.code = Errc::DeadlinePassed;
  error.rank = suspect.rank;
  error.step = suspect.steps;
  error.message = suspect.text;
  error.details = stacks + standing();
  group_.end_silent(suspect.rank, std::move(error));
}

void GroupWatch::explain(GroupEnded& news, const std::vector<RunError>& errors) const {
  if (!news.error) return;
  auto& cause = *news.error;
  if (const auto text = standing(); cause.details.find(text) == std::string::npos) cause.details += text;
  int told = 0;
  for (const auto& error : errors) {
    const auto who = error.rank ? "rank " + std::to_string(*error.rank) + ": " : std::string{};
    if (error.rank == cause.rank && (error.message == cause.message || error.code == Errc::Aborted)) continue;
    if (error.code != Errc::Aborted) news.other_errors.push_back(who + std::string(troupe::name(error.code)) + ": " + error.message);
    if (!error.details.empty() && ++told <= most_told) cause.details += who + error.message + "\n" + error.details;
  }
}

std::string GroupWatch::standing() const {
  if (last_.empty()) return {};
  std::string text = "ranks at their last beat:\n";
  for (const auto& [rank, beat] : last_) {
    text += "  rank " + std::to_string(rank) + ": " + std::to_string(beat.steps) + " steps, " + std::to_string(beat.collectives) + " collectives";
    if (beat.is_stopped) text += ", its process is stopped";
    if (beat.waiting_in != WaitingIn::Nothing) text += ", waiting in " + std::string(name(beat.waiting_in));
    text += "\n";
  }
  return text;
}

}  // namespace troupe

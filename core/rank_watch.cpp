#include <troupe/rank_watch.hpp>

#include <algorithm>
#include <cstdio>
#include <tuple>
#include <utility>

namespace troupe {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds shortest_period{40}, longest_period{1'000};  // a look takes 100 us of a core
constexpr std::size_t whole = num_step_phases;  // in Times

std::string text_of(milliseconds time) {
  return time.count() % 1000 == 0 ? std::to_string(time.count() / 1000) + " s" : std::to_string(time.count()) + " ms";
}

/// For each value the median of the others.
std::vector<double> medians_without_each(const std::vector<double>& values) {
  auto sorted = values;
  std::sort(sorted.begin(), sorted.end());
  std::vector<double> medians;
  for (const auto own : values) {
    const auto self = static_cast<std::size_t>(std::lower_bound(sorted.begin(), sorted.end(), own) - sorted.begin());
    const auto other = [&](std::size_t i) { return sorted[i < self ? i : i + 1]; };
    const auto count = sorted.size() - 1;
    medians.push_back(count % 2 == 1 ? other(count / 2) : (other(count / 2 - 1) + other(count / 2)) / 2);
  }
  return medians;
}

}  // namespace

RankBeat beat_of(const BlackBox& box) noexcept {
  constexpr auto order = std::memory_order_relaxed;
  RankBeat beat;
  beat.waiting_in = static_cast<WaitingIn>(box.waiting_in.load(std::memory_order_acquire));
  beat.progress = box.progress.load(order);
  beat.steps = box.steps.load(order);
  beat.collectives = box.collectives.load(order);
  beat.stop_calls = box.stop_calls.load(order);
  beat.waited = std::chrono::nanoseconds{box.waited_ns.load(order)};
  if (beat.waiting_in != WaitingIn::Nothing) {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    beat.waited += std::max(std::chrono::nanoseconds{0}, now - std::chrono::nanoseconds{box.waiting_since_ns.load(order)});
  }
  for (std::size_t phase = 0; phase < num_step_phases; ++phase) beat.phases[phase] = std::chrono::nanoseconds{box.phase_ns[phase].load(order)};
  return beat;
}

// ---- silence --------------------------------------------------------------------------------------------------

RankWatch::RankWatch(int world_size, milliseconds limit) : ranks_(static_cast<std::size_t>(world_size)), limit_(limit) {}

milliseconds RankWatch::period() const noexcept { return std::clamp(limit_ / 8, shortest_period, longest_period); }

void RankWatch::started(int rank) {
  auto& watched = ranks_.at(static_cast<std::size_t>(rank));
  watched = {};
  watched.running = true;
}

void RankWatch::ended(int rank) { ranks_.at(static_cast<std::size_t>(rank)).running = false; }

void RankWatch::beat(int rank, const RankBeat& beat) {
  auto& watched = ranks_.at(static_cast<std::size_t>(rank));
  watched.fresh = watched.fresh || beat.progress != watched.last.progress;
  watched.last = beat;
}

std::optional<Suspicion> RankWatch::look(Time now, const std::set<int>& in_barrier) {
  const auto passed = looked_ ? std::min<std::chrono::nanoseconds>(now - *looked_, 2 * period()) : std::chrono::nanoseconds{0};
  looked_ = now;
  std::optional<int> blamed;
  const auto place = [&](int rank) {
    const auto& watched = ranks_[static_cast<std::size_t>(rank)];
    return std::tuple{!watched.last.is_stopped, watched.last.steps, watched.last.collectives};
  };
  for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank) {
    auto& watched = ranks_[static_cast<std::size_t>(rank)];
    watched.silent = watched.fresh ? std::chrono::nanoseconds{0} : watched.silent + passed;
    watched.fresh = false;
    if (!watched.running) continue;
    if (watched.silent < limit_) continue;
    const bool waits = watched.last.waiting_in != WaitingIn::Nothing || in_barrier.contains(rank);
    if (waits && !watched.last.is_stopped) continue;
    // Of several, as when a device's queue hides what they wait for: the one that is furthest behind.
    if (!blamed || place(rank) < place(*blamed)) blamed = rank;
  }
  if (!blamed) return std::nullopt;
  const auto& watched = ranks_[static_cast<std::size_t>(*blamed)];
  const auto who = "rank " + std::to_string(*blamed);
  const auto where = watched.last.steps == 0 ? "in its first step" : "after step " + std::to_string(watched.last.steps);
  const auto why = watched.last.is_stopped ? ": its process is stopped" : "";
  return Suspicion{*blamed, watched.last.steps, who + " made no progress for " + text_of(limit_) + " (RunConfig.step_timeout) " + where + why};
}

// ---- slowness -------------------------------------------------------------------------------------------------

StragglerWatch::StragglerWatch(int world_size, StragglerOptions options) : options_(options), ranks_(static_cast<std::size_t>(world_size)) {}

void StragglerWatch::beat(int rank, const RankBeat& beat, Time when) {
  auto& pace = ranks_.at(static_cast<std::size_t>(rank));
  if (!pace.known) {
    pace.known = true;
    pace.begin = when;
    pace.first = beat;
  }
  pace.end = when;
  pace.last = beat;
}

void StragglerWatch::begin_window(Time now) {
  window_began_ = now;
  for (auto& pace : ranks_) {
    pace.begin = pace.end;
    pace.first = pace.last;
  }
}

std::optional<std::vector<StragglerWatch::Times>> StragglerWatch::times_of_window() const {
  std::vector<Times> times;
  for (const auto& pace : ranks_) {
    if (!pace.known || pace.last.steps < pace.first.steps + options_.min_steps) return std::nullopt;
    const auto steps = static_cast<double>(pace.last.steps - pace.first.steps);
    const auto a_step = [&](std::chrono::duration<double> time) { return std::max(0.0, time.count() / steps); };
    auto& mine = times.emplace_back();
    for (std::size_t phase = 0; phase < num_step_phases; ++phase) mine[phase] = a_step(pace.last.phases[phase] - pace.first.phases[phase]);
    mine[whole] = std::max(1e-9, a_step((pace.end - pace.begin) - (pace.last.waited - pace.first.waited)));
  }
  return times;
}

Straggler StragglerWatch::describe(std::size_t rank, const Times& own, const Times& others) const {
  const auto& windows = ranks_[rank].slow_windows;
  std::optional<StepPhase> phase;  // where it loses most, if that is most of what it loses
  double most = 0;
  for (std::size_t p = 0; p < whole; ++p) {
    const bool slow = windows[whole] >= options_.windows ? 2 * (own[p] - others[p]) > own[whole] - others[whole] : windows[p] >= options_.windows;
    if (!slow || own[p] - others[p] <= most) continue;
    most = own[p] - others[p];
    phase = static_cast<StepPhase>(p);
  }
  const bool marked = std::any_of(own.begin() + 1, own.begin() + whole, [](double time) { return time > 0; });
  if (!marked) phase.reset();
  const auto place = windows[whole] >= options_.windows || !phase ? whole : static_cast<std::size_t>(*phase);
  const auto score = others[place] / own[place];
  char text[400], where[160] = "";
  if (phase) {
    const auto p = static_cast<std::size_t>(*phase);
    const auto what = std::string(name(*phase));
    std::snprintf(where, sizeof where, " at %s: %.4g ms a step, the median of the others %.4g ms;", what.c_str(), own[p] * 1e3, others[p] * 1e3);
  }
  std::snprintf(text, sizeof text, "rank %zu is slow%s its own work takes %.4g ms a step, the median of the others %.4g ms (score %.2f%s, below %.2f for %d windows); they wait for it",
                rank, phase ? where : ":", own[whole] * 1e3, others[whole] * 1e3, score, place == whole ? "" : " of that phase", options_.threshold,
                windows[place]);
  return {static_cast<int>(rank), phase, score, own[place], others[place], text};
}

std::vector<Straggler> StragglerWatch::look(Time now) {
  if (ranks_.size() < 2) return {};
  if (!window_began_) begin_window(now);
  if (now - *window_began_ < options_.window) return {};
  const auto times = times_of_window();
  if (!times) return {};  // the window goes on
  std::vector<Times> others(ranks_.size());
  for (std::size_t place = 0; place <= whole; ++place) {
    std::vector<double> all;
    for (const auto& mine : *times) all.push_back(mine[place]);
    const auto medians = medians_without_each(all);
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) others[rank][place] = medians[rank];
  }
  std::vector<Straggler> stragglers;
  scores_.clear();
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    auto& pace = ranks_[rank];
    const auto &own = (*times)[rank], &median = others[rank];
    scores_.push_back(median[whole] / own[whole]);
    int longest = 0;
    for (std::size_t place = 0; place <= whole; ++place) {
      const bool slow = median[place] < options_.threshold * own[place] && own[place] - median[place] >= options_.min_share * median[whole];
      pace.slow_windows[place] = slow ? pace.slow_windows[place] + 1 : 0;
      longest = std::max(longest, pace.slow_windows[place]);
    }
    if (longest == 0) pace.named = false;
    if (longest < options_.windows || std::exchange(pace.named, true)) continue;
    stragglers.push_back(describe(rank, own, median));
  }
  begin_window(now);
  return stragglers;
}

}  // namespace troupe

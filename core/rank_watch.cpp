#include <troupe/rank_watch.hpp>

#include <algorithm>
#include <cstdio>
#include <tuple>
#include <utility>

namespace troupe {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds shortest_period{20}, longest_period{1'000};

std::string text_of(milliseconds time) {
  return time.count() % 1000 == 0 ? std::to_string(time.count() / 1000) + " s" : std::to_string(time.count()) + " ms";
}

}  // namespace

RankBeat beat_of(const BlackBox& box) noexcept {
  constexpr auto order = std::memory_order_relaxed;
  RankBeat beat;
  beat.waiting_in = static_cast<WaitingIn>(box.waiting_in.load(std::memory_order_acquire));
  beat.progress = box.progress.load(order);
  beat.steps = box.steps.load(order);
  beat.collectives = box.collectives.load(order);
  beat.waited = std::chrono::nanoseconds{box.waited_ns.load(order)};
  if (beat.waiting_in != WaitingIn::Nothing) {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    beat.waited += std::max(std::chrono::nanoseconds{0}, now - std::chrono::nanoseconds{box.waiting_since_ns.load(order)});
  }
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
    if (!watched.running || watched.silent < limit_) continue;
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

std::vector<Straggler> StragglerWatch::look(Time now) {
  if (ranks_.size() < 2) return {};
  if (!window_began_) begin_window(now);
  if (now - *window_began_ < options_.window) return {};
  std::vector<double> times;
  for (const auto& pace : ranks_) {
    if (!pace.known || pace.last.steps < pace.first.steps + options_.min_steps) return {};  // the window goes on
    const std::chrono::duration<double> busy = (pace.end - pace.begin) - (pace.last.waited - pace.first.waited);
    times.push_back(std::max(1e-9, busy.count() / static_cast<double>(pace.last.steps - pace.first.steps)));
  }
  auto sorted = times;
  std::sort(sorted.begin(), sorted.end());
  const auto median_without = [&](double own) {  // of the others
    const auto self = static_cast<std::size_t>(std::lower_bound(sorted.begin(), sorted.end(), own) - sorted.begin());
    const auto other = [&](std::size_t i) { return sorted[i < self ? i : i + 1]; };
    const auto count = sorted.size() - 1;
    return count % 2 == 1 ? other(count / 2) : (other(count / 2 - 1) + other(count / 2)) / 2;
  };
  std::vector<Straggler> stragglers;
  scores_.clear();
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    const auto median = median_without(times[i]);
    const auto score = scores_.emplace_back(median / times[i]);
    auto& pace = ranks_[i];
    pace.slow_windows = score < options_.threshold ? pace.slow_windows + 1 : 0;
    if (score >= options_.threshold) pace.named = false;
    if (pace.slow_windows < options_.windows || std::exchange(pace.named, true)) continue;
    char text[256];
    std::snprintf(text, sizeof text,
                  "rank %zu is slow: its own work takes %.4g ms a step, the median of the others %.4g ms (score %.2f, below %.2f for %d windows); "
                  "they wait for it",
                  i, times[i] * 1e3, median * 1e3, score, options_.threshold, pace.slow_windows);
    stragglers.push_back({static_cast<int>(i), score, times[i], median, text});
  }
  begin_window(now);
  return stragglers;
}

}  // namespace troupe

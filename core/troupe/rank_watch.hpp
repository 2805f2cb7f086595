#pragma once

#include <troupe/black_box.hpp>

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

// Who is silent, and who is slow. Plain values and decisions: no actor, no clock.

namespace troupe {

/// What a rank's training thread has done so far in its attempt, and what it is at.
struct RankBeat {
  std::uint64_t progress = 0;     ///< changes whenever the training thread does anything that others can see
  std::uint64_t steps = 0;        ///< completed
  std::uint64_t collectives = 0;  ///< begun
  WaitingIn waiting_in = WaitingIn::Nothing;
  std::chrono::nanoseconds waited{0};  ///< for others, in all
  bool is_stopped = false;             ///< its process is (SIGSTOP, a debugger)
  std::array<std::chrono::nanoseconds, num_step_phases> phases{};  ///< spent in each, in all, without waits
  std::uint64_t stop_calls = 0;  ///< of should_stop()
};

/// Of a box that is being written.
[[nodiscard]] RankBeat beat_of(const BlackBox& box) noexcept;

struct Suspicion {
  int rank = 0;
  std::uint64_t steps = 0;
  std::string text;  ///< "rank 1 showed no progress for 2000 ms: …"
};

/// Finds the rank that holds the others up. Ask it at least once every `period()`.
///
/// A rank is silent when its training thread made no progress for the limit. One that waits for others is not to blame: the one
/// that they wait for is. A stopped process is to blame whatever it stopped in. Time counts only as far as it was watched: when the
/// watcher itself was held up, ranks are not older for it.
class RankWatch {
 public:
  using Time = std::chrono::steady_clock::time_point;

  RankWatch() = default;
  RankWatch(int world_size, std::chrono::milliseconds limit);

  /// How long until the next look: an eighth of the limit, from 40 ms to 1 s: looks cost, and a shorter limit is kept a little less exactly.
  [[nodiscard]] std::chrono::milliseconds period() const noexcept;

  void started(int rank);
  void ended(int rank);
  void beat(int rank, const RankBeat& beat);
  /// Once a period. @param in_barrier ranks that wait in a barrier of the group.
  [[nodiscard]] std::optional<Suspicion> look(Time now, const std::set<int>& in_barrier = {});

 private:
  struct Watched {
    bool running = false;
    bool fresh = true;  ///< showed progress since the last look
    RankBeat last;
    std::chrono::nanoseconds silent{0};
  };
  std::vector<Watched> ranks_;
  std::chrono::milliseconds limit_{0};
  std::optional<Time> looked_;
};

struct StragglerOptions {
  std::chrono::milliseconds window{5'000};
  double threshold = 0.7;  ///< of the median of the others' time by its own
  int windows = 5;         ///< in a row
  std::uint64_t min_steps = 3;  ///< of a window; a slower loop has longer windows
  double min_share = 0.1;       ///< a phase counts only where it is slower by so much of the others' whole step
};

struct Straggler {
  int rank = 0;
  std::optional<StepPhase> phase;  ///< where it is slow; nothing: all over its step, or nobody marks phases
  double score = 0;              ///< the median of the others' time a step by its own, or of that phase; 1: as fast as they
  double seconds_a_step = 0;     ///< its own, without what it waited
  double median_seconds = 0;     ///< the others'
  std::string text;              ///< for a warning
};

/// Finds ranks whose own work, or one phase of it, takes longer than the others': the time of a step without what it waited for others, since
/// all take equally long with it. Named once, and again only after it kept up for a window. Needs two ranks.
class StragglerWatch {
 public:
  using Time = std::chrono::steady_clock::time_point;

  StragglerWatch() = default;
  explicit StragglerWatch(int world_size, StragglerOptions options = {});

  /// `when` the beat was taken. Beats of one rank in order.
  void beat(int rank, const RankBeat& beat, Time when);
  /// Whoever has become a straggler since the last call; at most one answer a window.
  [[nodiscard]] std::vector<Straggler> look(Time now);
  /// The latest whole window's scores by rank; empty before.
  [[nodiscard]] const std::vector<double>& scores() const noexcept { return scores_; }

 private:
  struct Pace {
    bool known = false;
    Time begin, end;
    RankBeat first, last;
    std::array<int, num_step_phases + 1> slow_windows{};  // in a row; of each phase, and of the whole step
    bool named = false;
  };
  using Times = std::array<double, num_step_phases + 1>;  // seconds a step: of each phase, and of the whole
  void begin_window(Time now);
  /// Of every rank in the window that ends; nothing while some have done too little.
  [[nodiscard]] std::optional<std::vector<Times>> times_of_window() const;
  [[nodiscard]] Straggler describe(std::size_t rank, const Times& own, const Times& others) const;

  StragglerOptions options_;
  std::vector<Pace> ranks_;
  std::vector<double> scores_;
  std::optional<Time> window_began_;
};

}  // namespace troupe

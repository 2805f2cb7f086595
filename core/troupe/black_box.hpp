#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// What a rank is at, written by its threads as it goes, in memory that others can read at any time and after its death. No lock, no
// allocation, no pointer into anything: it lies in a mapping that two processes share, and a signal handler writes into it.

namespace troupe {

/// What the training thread waits for others in.
enum class WaitingIn : std::uint32_t { Nothing, Collective, Barrier, StopStep, Save };
/// "a collective"
[[nodiscard]] std::string_view name(WaitingIn what) noexcept;

/// What a step of the training thread consists of, as far as somebody marks it; what nobody marks is Other.
enum class StepPhase : std::uint32_t { Other, Data, Forward, Backward, Update };
inline constexpr std::size_t num_step_phases = 5;
/// "loading data"
[[nodiscard]] std::string_view name(StepPhase phase) noexcept;

enum class EventKind : std::uint8_t { None, Started, Step, Report, Barrier, BarrierPassed, Collective, CollectiveEnded, Save, Chaos, Data };
/// "collective"
[[nodiscard]] std::string_view name(EventKind kind) noexcept;

/// One event as it is read back.
struct BoxEvent {
  std::int64_t time_ns = 0;  ///< steady clock
  EventKind kind = EventKind::None;
  std::uint64_t number = 0;  ///< of the step, report, barrier or collective
  std::string what;          ///< "all_reduce"
  std::string label;         ///< "encoder.5"
};
/// "collective #12 all_reduce of encoder.5"
[[nodiscard]] std::string describe(const BoxEvent& event);

/// Return addresses of one thread, innermost first.
struct BoxStack {
  static constexpr int max_frames = 64;
  std::atomic<std::uint32_t> ready;  ///< 1: whole
  std::int32_t thread;               ///< its kernel number
  char name[16];
  std::int32_t num_frames;
  std::uint64_t frames[max_frames];
};

struct BlackBox {
  static constexpr std::size_t num_events = 1024;
  static constexpr std::size_t max_stacks = 48;
  static constexpr std::size_t maps_bytes = 256 << 10;

  // ---- marks of the training thread, which alone writes them -------------------------------------------------------
  std::atomic<std::uint64_t> attempt, progress, steps, collectives, stop_calls;  ///< stop_calls: of should_stop()
  std::atomic<std::int32_t> rank, training_thread;   ///< training_thread: its kernel number; 0: none runs
  std::atomic<std::uint32_t> waiting_in;             ///< a WaitingIn
  std::atomic<std::int64_t> waiting_since_ns;        ///< steady clock
  std::atomic<std::int64_t> waited_ns;               ///< in all, waits that are over
  std::atomic<std::uint32_t> phase;                  ///< a StepPhase
  std::atomic<std::int64_t> phase_since_ns;          ///< steady clock, later by what was waited for others since
  std::array<std::atomic<std::int64_t>, num_step_phases> phase_ns;  ///< in all, phases that are over, without waits

  // ---- events: words, so that who reads while they are written reads no torn word -----------------------------------
  struct Event {
    std::array<std::atomic<std::uint64_t>, 8> words;
  };
  std::atomic<std::uint64_t> next_event;
  std::array<Event, num_events> events;

  // ---- a crash: written once, by the handler of the signal -----------------------------------------------------------
  std::atomic<std::uint32_t> crash;  ///< 0: none, 1: being written, 2: whole
  std::int32_t signal, signal_code;
  std::uint64_t fault_address, program_counter;
  BoxStack crash_stack;
  char last_words[512];              ///< of std::terminate: what was thrown
  std::uint32_t maps_length;
  char maps[maps_bytes];             ///< the executable lines of /proc/self/maps

  // ---- stacks of living threads, on request --------------------------------------------------------------------------
  std::atomic<std::uint32_t> next_stack;
  std::array<BoxStack, max_stacks> stacks;

  // What the training thread calls: a few ns each.
  void advance() noexcept { progress.store(progress.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }
  void begin_wait(WaitingIn what) noexcept;
  void end_wait() noexcept;
  void enter(StepPhase next) noexcept;
  /// Any thread. Of `what` the first 15 bytes are kept, of `label` the last 32.
  void note(EventKind kind, std::uint64_t number, std::string_view what, std::string_view label, std::chrono::steady_clock::time_point now) noexcept;
  /// A new attempt of `rank` begins on the calling thread: marks are set back, events stay.
  void begin(std::uint64_t attempt, int rank) noexcept;
  /// Its training thread is over.
  void end() noexcept { training_thread.store(0, std::memory_order_relaxed); }

  /// The latest events, oldest first, at most `most`. Any thread, any process.
  [[nodiscard]] std::vector<BoxEvent> latest(std::size_t most = num_events) const;
};

/// Makes `box` the one that `current_black_box()` gives on this thread while it lives.
class BlackBoxScope {
 public:
  explicit BlackBoxScope(BlackBox* box) noexcept;
  ~BlackBoxScope();
  BlackBoxScope(const BlackBoxScope&) = delete;
  BlackBoxScope& operator=(const BlackBoxScope&) = delete;

 private:
  BlackBox* before_;
};

/// Of the rank whose training thread calls; nullptr on every other thread.
[[nodiscard]] BlackBox* current_black_box() noexcept;

/// The training thread goes on to another part of its step; on other threads it is nothing. 30 ns.
inline void mark_phase(StepPhase next) noexcept {
  if (auto* box = current_black_box()) box->enter(next);
}

/// The training thread waits for others while this lives. On other threads it is nothing.
class WaitMark {
 public:
  explicit WaitMark(WaitingIn what) noexcept : box_(current_black_box()) {
    if (box_) box_->begin_wait(what);
  }
  ~WaitMark() {
    if (box_) box_->end_wait();
  }
  WaitMark(const WaitMark&) = delete;
  WaitMark& operator=(const WaitMark&) = delete;

 private:
  BlackBox* box_;
};

}  // namespace troupe

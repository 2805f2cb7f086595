#pragma once

#include "group_watch.hpp"

#include <troupe/worker_group.hpp>

#include <caf/all.hpp>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace troupe {

/// What a WorkerGroup may wait for too long.
enum class Wait : std::uint8_t { Start, Barrier, Heed, Stop, End };

/// The group's timer to itself.
struct WaitOverdue {
  Wait wait;
};

/// One attempt. The machine: Starting → Running → (Stopping →) Ending; any of them → Ending when a rank is lost. A group
/// whose ranks all return goes to its end from where it is. Late news of a phase that is over is ignored.
struct GroupState {
  static inline const char* name = "troupe.group";
  enum class Phase : std::uint8_t { Starting, Running, Stopping, Ending };
  struct Barrier {
    std::set<int> came;
    std::string bytes;  // rank 0's
    caf::actor_clock::time_point deadline;
  };

  caf::event_based_actor* self = nullptr;
  caf::actor trainer;
  PlacerFactory make_placer;
  StartGroup order;
  std::unique_ptr<RankPlacer> placer;
  Phase phase = Phase::Starting;
  bool hurry = false;  // a second stop: no grace
  std::chrono::milliseconds end_limit{0};  // from an abort until ranks are given up
  std::vector<caf::actor> ranks;  // empty handle: ended, or never placed
  std::unordered_map<caf::actor_id, int> rank_of;  // of all that were placed
  std::map<int, SeatOpened> seats;  // of ranks on several hosts
  std::set<int> started, ended, returned;
  std::vector<std::int64_t> pids;
  std::map<int, std::uint64_t> stop_counts;
  std::optional<std::uint64_t> stop_after;  // calls of should_stop(), once agreed
  bool was_stopped = false;
  bool stop_is_timed = false, stop_is_resize = false;
  std::map<int, std::uint64_t> steps_at_stop;  // when it was asked for
  bool has_ended_silent = false;
  std::map<std::uint64_t, Barrier> barriers;
  bool barrier_timer_set = false;
  std::vector<RunError> errors;
  std::optional<int> places;  // some had none: so many did, or would have, as whoever places them says
  int num_not_started = 0;
  std::optional<std::set<std::string>> unused_keys;
  GroupWatch watch{*this};
  std::uint64_t stale = 0;  // messages of another attempt, dropped

  ~GroupState();

  bool is_stale(Attempt attempt);
  void begin(StartGroup start);
  void seat_opened(const SeatOpened& news);
  void tell_seats();
  void rank_started(const RankStarted& news);
  void rank_done(const RankDone& news);
  void rank_lost(int rank, const RunError& error, std::optional<int> had_places = {});
  void barrier_reached(BarrierReached news);
  void stop_counted(int rank, std::uint64_t calls);
  void stop(const StopGroup& how);
  void find_places(int count);
  /// Records the cause and ends every rank by force.
  void fail(Errc code, const std::string& reason, bool at_once = false);
  /// Ends a rank that hangs, and with it the attempt.
  void end_silent(int rank, RunError error);
  void start_overdue();
  void barriers_overdue();
  void stop_unheeded();
  void stop_overdue();
  void end_overdue();
  void exited(const caf::exit_msg& exit);
  void rank_down(const caf::down_msg& down);

  template <class News>
  void forward(News news) {
    self->send(trainer, std::move(news));
  }

 private:
  RunRank order_for(int rank) const;
  int world_size() const { return order.scaling.num_workers; }
  template <class Order>
  void tell_ranks(const Order& message) {
    const auto shared = caf::make_message(message);
    for (const auto& rank : ranks) {
      if (rank) self->send(rank, shared);
    }
  }
  void wait_at_most(std::chrono::milliseconds limit, Wait wait);
  void tell_waiting(const Barrier& barrier, const BarrierPassed& news);
  void watch_barriers();
  void fail_barriers_without(const std::set<int>& gone);
  void release_stop();
  std::string say_unheeded() const;
  void complete_error_of_silent(int rank);
  void end_ranks(const std::string& reason, bool at_once = false);
  void rank_ended(int rank);
  void finish();
};

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::WaitOverdue)

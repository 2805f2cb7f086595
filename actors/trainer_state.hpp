#pragma once

#include "checkpoint_keeper.hpp"

#include <troupe/failure_policy.hpp>
#include <troupe/post_mortem.hpp>
#include <troupe/trainer.hpp>
#include <troupe/worker_group.hpp>

#include <caf/all.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace troupe {

/// What a Trainer is made of; tests put their own keeper and placer in.
struct TrainerSetup {
  std::string function;
  std::string config_json;
  ScalingConfig scaling;
  RunConfig run;
  DataConfig data;
  std::vector<caf::actor> listeners;
  PlacerFactory make_placer;
  std::function<caf::actor(caf::actor_system&, caf::actor)> spawn_keeper = spawn_checkpoint_keeper;
  std::optional<std::uint32_t> seed = {};  ///< of the jitter of pauses; nothing: drawn
  bool outlives_handles = false;           ///< the run goes on when nobody holds the Trainer any more
};

/// The Trainer to itself: the pause before the next attempt is over.
struct RetryDue {
  Attempt attempt;
};

/// The Trainer to itself: the run has had its time.
struct TimeIsUp {};

/// The Trainer to itself: reports wait to be kept.
struct KeepDue {};

/// The Trainer to itself: some ranks have reported a checkpoint, others not.
struct CheckpointDue {
  Attempt attempt;
};

/// The Trainer to itself: an elastic run that has lost ranks looks for places.
struct GrowthDue {
  Attempt attempt;
};

/// One run. The machine: Opening → Running → Settling → (Pausing → Running …) → Finishing.
/// Opening: the keeper opens the directory. Running: a WorkerGroup carries out an attempt. Settling: it has ended, the
/// keeper commits what was reported. Pausing: before another attempt. Finishing: the keeper writes the result.
struct TrainerState {
  static inline const char* name = "troupe.trainer";
  enum class Phase : std::uint8_t { Opening, Running, Settling, Pausing, Finishing };

  caf::event_based_actor* self = nullptr;
  caf::actor own_handle;  ///< keeps the Trainer until it quits, where it outlives its handles
  TrainerSetup setup;
  caf::actor keeper;
  caf::actor group;
  Phase phase = Phase::Opening;
  Attempt attempt = 0;
  caf::actor_clock::time_point began;
  Result result;
  std::string run_name;
  std::uint64_t next_report_index = 0;
  std::size_t num_kept = 0;  // reports of the history that the keeper has
  bool keep_due = false;     // a KeepDue is on its way
  bool checkpoint_due = false;  // a CheckpointDue is, of this attempt
  std::vector<std::string> warnings, unused_config_keys;
  CheckpointAssembly assembly;
  std::optional<RunError> own_error;   // of the run's storage, or of what ranks reported
  std::optional<RunError> last_error;  // of the attempt that has ended
  std::optional<int> last_places;      // ranks of it that could be started, when some could not
  Verdict verdict;
  std::vector<caf::actor_clock::time_point> failures;  // of attempts
  std::map<Errc, int> failures_by_code;
  std::map<int, std::vector<caf::actor_clock::time_point>> failures_by_rank;  // since all ranks were started anew
  std::vector<caf::actor_clock::time_point> renewals;                         // of all ranks
  bool is_next_fresh = false;                                                 // the next attempt's ranks are all new
  int fruitless = 0;                                   // attempts in a row that got nowhere
  bool reports_came = false;                           // in this attempt
  bool was_stopped = false;                            // the attempt that has ended: before its train functions were done
  std::vector<std::string> other_errors;               // of the attempt that has ended
  int stop_requests = 0;
  int world_size = 0;          // of this attempt, or of the next one
  int wanted_world_size = 0;   // after a ResizeRun, a shrink or a growth
  int resized_to = 0;          // by the last ResizeRun
  struct Growth {
    std::optional<caf::actor_clock::time_point> at;  // the next try
    int failed_tries = 0;     // in a row
    bool is_looking = false;  // for places, in this attempt
    bool is_agreed = false;   // places were found: the next attempt has more ranks
    int grew_from = 0;        // the ranks before this attempt, which is the first one with more by a growth
  } growth;
  int copied_world_size = 0;   // of the attempt that `snapshot` or the newest checkpoint comes from
  SnapshotOptions snapshots;
  std::optional<StateCopy> snapshot;
  std::optional<StateCopy> attempt_began_from;
  std::minstd_rand random{std::random_device{}()};
  std::uint64_t stale = 0;  // messages of another attempt, dropped

  bool is_stale(Attempt of);
  void open();
  void opened(RunOpened news);
  void stop(const StopRun& order);
  void resize(const ResizeRun& order);
  void move(const MoveRanks& order);
  void reported(Reported news);
  void keep_reports();
  void checkpoint_overdue(Attempt due);
  void checkpoint_written(const CheckpointWritten& news);
  void checkpoint_kept(const CheckpointKept& news);
  void warned(const RunWarning& news);
  void checkpoint_failed(std::uint64_t index, Errc error, const std::string& text);
  void group_ended(const GroupEnded& news);
  void group_started(const GroupStarted& news);
  void try_to_grow(Attempt due);
  void places_found(const PlacesFound& news);
  void settled(RunSettled news);
  void retry(Attempt due);
  void storage_failed(const StorageFailed& news);
  void finished();
  void exited(const caf::exit_msg& exit);
  template <class News>
  void tell_listeners(News news) {
    const auto message = caf::make_message(std::move(news));
    for (const auto& listener : setup.listeners) self->send(listener, message);
  }

 private:
  void commit(std::optional<CompleteCheckpoint> complete);
  void watch_checkpoints();
  void describe_copies(PostMortem& page) const;
  void write_post_mortem(const RunError& error, bool goes_on, const std::string& decision);
  void start_attempt();
  bool is_resizing() const { return wanted_world_size != 0 && wanted_world_size != world_size; }
  FailuresSoFar failures_so_far() const;
  int count_in_window(const std::vector<caf::actor_clock::time_point>& times) const;
  /// Decides on a failed attempt; false: the run ends.
  bool goes_on_after_failure(bool got_on);
  void escalate();
  int wanted_by_user() const;
  /// @param is_new from now on, whatever was planned before.
  void plan_growth(bool is_new);
  void watch_growth();
  /// The next attempt has the ranks that are wanted.
  void take_wanted_size();
  /// After the first attempt with more ranks: true when they go back to the number of before.
  bool take_growth_back(bool got_on);
  void note(nlohmann::ordered_json event);
  template <class Order>
  void tell_keeper(Order order) {
    if (keeper) self->send(keeper, std::move(order));
  }
  void fail(Errc code, const std::string& text);
  void keeper_ended(Errc code, const std::string& why);
  void finish();
};

/// The Trainer's actor, for `system.spawn`.
caf::behavior trainer_behavior(caf::stateful_actor<TrainerState>* self, TrainerSetup setup);

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RetryDue)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::TimeIsUp)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointDue)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::GrowthDue)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::KeepDue)

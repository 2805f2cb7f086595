#pragma once

#include <troupe/caf_types.hpp>
#include <troupe/communicator.hpp>
#include <troupe/kept_objects.hpp>
#include <troupe/session.hpp>

#include <caf/actor.hpp>
#include <caf/event_based_actor.hpp>
#include <caf/fwd.hpp>

#include <functional>
#include <memory>
#include <string>

namespace troupe {

/// Spawns a rank in this process: a control actor that always answers, and one thread that runs the train function.
/// Used by thread placement, and inside a process that a group started.
///
/// The actor waits for RunRank, tells everything to `group` (RankStarted, Reported…, RankDone or RankLost: exactly one
/// of the two, after the thread has ended), and quits then. It monitors `group`: when that dies, the rank is
/// aborted. `seat` is given up as soon as the train function returns, so that peers see it leave; when the function
/// throws, the collective group is aborted first with "rank 1 failed: …".
///
/// @param functions must outlive the actor. @param kept for `TrainContext::keep`; nothing: the rank keeps nothing.
/// @param datasets for `TrainContext::dataset`.
[[nodiscard]] caf::actor spawn_thread_rank(caf::actor_system& system, const TrainFunctions& functions, std::shared_ptr<Communicator> seat,
                                           caf::actor group, std::shared_ptr<KeptObjects> kept = nullptr, DatasetFunctions datasets = {});

/// Where the ranks of one attempt live. Made by the Trainer, owned by the WorkerGroup, destroyed before GroupEnded.
class RankPlacer {
 public:
  virtual ~RankPlacer() = default;
  /// Makes the actor that speaks for rank `spec.rank`, which ends with `group`; the group watches it and sends it RunRank next. Must not
  /// block. Throws Failure{StartFailed} naming the limit that was hit.
  /// The actor answers RankDone or RankLost exactly once, when nothing of the rank is left but a process that can be another.
  [[nodiscard]] virtual caf::actor place(caf::event_based_actor* group, const RunRank& spec) = 0;
  /// Something that ranks need, as a checkpoint, is still being brought to where they are to run: their start may take longer. It has deadlines of its own.
  [[nodiscard]] virtual bool is_preparing() const { return false; }
  /// Every rank runs its train function.
  virtual void all_started() {}
  using Found = std::function<void(int count, const std::string& why)>;
  /// Tries whether `count` more ranks could run here. Must not block, and disturbs none that runs.
  /// @param done called at most once, on any thread, with how many could, and why not more.
  virtual void find_places(int count, Found done) {
    (void)count;
    done(0, "more ranks cannot be placed here");
  }
  /// Frees every rank that waits in a collective, within 100 ms. Any thread; the first reason stays.
  virtual void abort(const std::string& reason) noexcept = 0;
};

/// Ranks as threads of this process. Throws Failure{StartFailed}. `session` must outlive the placer and its ranks.
[[nodiscard]] std::unique_ptr<RankPlacer> make_thread_placer(const Session& session, const StartGroup& group,
                                                             std::shared_ptr<KeptObjects> kept = nullptr);
/// Ranks as processes of this host: this program, started again. They end with the placer. Throws Failure{StartFailed}.
[[nodiscard]] std::unique_ptr<RankPlacer> make_process_placer(const Session& session, const StartGroup& group);

}  // namespace troupe

#include <troupe/trainer.hpp>

#include "cluster_run.hpp"
#include "exceptions.hpp"
#include "local_processes.hpp"
#include "process_placer.hpp"
#include "trainer_state.hpp"

#include <troupe/chaos.hpp>

#include <nlohmann/json.hpp>

namespace troupe {

caf::behavior trainer_behavior(caf::stateful_actor<TrainerState>* self, TrainerSetup setup) {
  auto& state = self->state;
  state.self = self;
  keep_exceptions(self);
  state.setup = std::move(setup);
  if (state.setup.outlives_handles) state.own_handle = caf::actor{self};
  state.open();
  // What a listener does not handle comes back as an error, which ends an actor by default.
  self->set_error_handler([](caf::error&) {});
  self->set_exit_handler([&state](const caf::exit_msg& exit) { state.exited(exit); });
  return {
      // from anyone
      [&state](const StopRun& order) { state.stop(order); },
      [&state](const ResizeRun& order) { state.resize(order); },
      [&state](const MoveRanks& order) { state.move(order); },
      // from the WorkerGroup
      [&state](Reported& news) {
        if (!state.is_stale(news.attempt)) state.reported(std::move(news));
      },
      [&state](const CheckpointWritten& news) {
        if (!state.is_stale(news.attempt)) state.checkpoint_written(news);
      },
      [&state](const Progressed& news) {
        if (!state.is_stale(news.attempt)) state.tell_listeners(news);
      },
      [&state](const GroupStarted& news) {
        if (!state.is_stale(news.attempt)) state.group_started(news);
      },
      [&state](const PlacesFound& news) {
        if (!state.is_stale(news.attempt)) state.places_found(news);
      },
      [&state](const GroupEnded& news) {
        if (!state.is_stale(news.attempt)) state.group_ended(news);
      },
      // from the CheckpointKeeper
      [&state](RunOpened& news) { state.opened(std::move(news)); },
      [&state](const CheckpointKept& news) { state.checkpoint_kept(news); },
      [&state](const CheckpointNotKept& news) { state.checkpoint_failed(news.index, news.code, news.text); },
      [&state](const CheckpointUploaded& news) { state.tell_listeners(news); },
      [&state](const RunWarning& news) { state.warned(news); },
      [&state](RunSettled& news) { state.settled(std::move(news)); },
      [&state](RunFinished) { state.finished(); },
      [&state](const StorageFailed& news) { state.storage_failed(news); },
      // its own timers
      [&state](KeepDue) {
        state.keep_due = false;
        state.keep_reports();
      },
      [&state](CheckpointDue timer) { state.checkpoint_overdue(timer.attempt); },
      [&state](TimeIsUp) { state.stop({"its time limit is over", true}); },
      [&state](RetryDue timer) { state.retry(timer.attempt); },
      [&state](GrowthDue timer) { state.try_to_grow(timer.attempt); },
  };
}

caf::actor spawn_trainer(caf::actor_system& system, const Session& session, std::string train_function,
                         Config train_loop_config, TrainerOptions options, std::vector<caf::actor> listeners) {
  TrainerSetup setup;
  setup.function = std::move(train_function);
  setup.config_json = train_loop_config.json().dump();
  setup.scaling = options.scaling;
  setup.run = options.run;
  setup.data = std::move(options.dataset_config);
  validate(setup.data, session.datasets());
  setup.run.chaos = chaos_in_force(setup.run.chaos);
  setup.listeners = std::move(listeners);
  setup.outlives_handles = true;
  detail::check_cluster(options);
  std::shared_ptr<detail::NodeProcesses> on_nodes;
  std::shared_ptr<detail::RankProcesses> processes;
  if (setup.scaling.placement == Placement::Nodes) {
    setup.run.failure.snapshot_every = 0;  // memory of one node, which goes with it
    processes = on_nodes = detail::open_on_nodes(session, options);
    setup.listeners.push_back(detail::spawn_status_keeper(system, on_nodes));
    setup.spawn_keeper = [on_nodes](caf::actor_system& own, caf::actor trainer) {
      KeeperParts parts;
      parts.open_storage = [on_nodes](const RunConfig& run, const auto& before_reading) { return on_nodes->open_storage(run, before_reading); };
      return spawn_checkpoint_keeper_with(own, std::move(trainer), std::move(parts));
    };
  } else {
    processes = std::make_shared<detail::LocalProcesses>(session, setup.scaling, setup.run);
  }
  // Dropped with the factory, before the run's result is written: places are others' then.
  std::shared_ptr<void> places{nullptr, [on_nodes](void*) {
                                 if (on_nodes) on_nodes->close();
                               }};
  setup.make_placer = [&session, kept = std::make_shared<KeptObjects>(), processes = std::move(processes), places = std::move(places)](const StartGroup& group) {
    if (group.is_fresh) {
      kept->clear();
      processes->start_anew();
    }
    return group.scaling.placement == Placement::Threads ? make_thread_placer(session, group, kept) : make_placer_in(processes, group);
  };
  auto trainer = system.spawn(trainer_behavior, std::move(setup));
  if (on_nodes) detail::pass_orders(*on_nodes, trainer);
  return trainer;
}

}  // namespace troupe

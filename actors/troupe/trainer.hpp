#pragma once

#include <troupe/caf_types.hpp>
#include <troupe/torch_trainer.hpp>

#include <caf/actor.hpp>
#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>

namespace troupe {

/// Adds Troupe's message types to a user's configuration. Call it before the actor_system is made.
void register_types(caf::actor_system_config& config);

/// Spawns a Trainer in any actor system. Every listener gets RunStarted for each attempt, then ReportArrived…,
/// Progressed… (now and then), CheckpointCommitted… or CheckpointFailed…, with an object store CheckpointUploaded…, RunWarning when something
/// went wrong that does not end the run, and at last RunEnded. The Trainer takes StopRun from anyone and
/// quits after RunEnded; asked to exit, it ends the run at once first. The run goes on when its handle is dropped.
///
/// @param session must outlive the actor.
/// @param options `on_report` is not called: listeners are the callbacks here.
[[nodiscard]] caf::actor spawn_trainer(caf::actor_system& system, const Session& session, std::string train_function,
                                       Config train_loop_config, TrainerOptions options,
                                       std::vector<caf::actor> listeners);

}  // namespace troupe

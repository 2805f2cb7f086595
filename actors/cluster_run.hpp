#pragma once

#include "cluster_places.hpp"

#include <troupe/torch_trainer.hpp>

#include <caf/actor.hpp>
#include <caf/actor_system.hpp>

#include <memory>

namespace troupe::detail {

/// Throws Failure{InvalidConfig} unless there is a cluster exactly where ranks are on nodes.
void check_cluster(const TrainerOptions& options);

/// The places of the run on its cluster's nodes.
[[nodiscard]] std::shared_ptr<NodeProcesses> open_on_nodes(const Session& session, const TrainerOptions& options);

/// A listener that keeps the cluster's status of the run, until RunEnded.
[[nodiscard]] caf::actor spawn_status_keeper(caf::actor_system& system, std::shared_ptr<NodeProcesses> processes);

/// Passes the cluster's orders to the Trainer, while it lives.
void pass_orders(NodeProcesses& processes, const caf::actor& trainer);

}  // namespace troupe::detail

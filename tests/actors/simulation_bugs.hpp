#pragma once

#include "../../actors/checkpoint_keeper.hpp"
#include "simulation.hpp"

namespace troupe::sim {

/// The real keeper, or one with a planted bug before it.
[[nodiscard]] caf::actor spawn_keeper_with_bug(caf::actor_system& system, const caf::actor& trainer, KeeperParts parts, Bug bug);

}  // namespace troupe::sim

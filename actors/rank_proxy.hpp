#pragma once

#include "process_pool.hpp"

#include <troupe/caf_types.hpp>

#include <caf/actor.hpp>
#include <caf/event_based_actor.hpp>
#include <memory>

namespace troupe::detail {

/// Spawns the actor that speaks for a rank in a process of `pool`, linked to `group`: orders go over the link, news comes
/// back, and RankDone or RankLost follows when the process is gone, or is back in the pool as good as new. A rank that
/// does not end `stop_grace` after an abort, or after its last message, is killed.
/// @param memory where the ranks of this attempt meet
[[nodiscard]] caf::actor spawn_rank_proxy(caf::actor_system& system, std::shared_ptr<ProcessPool> pool,
                                          std::shared_ptr<SharedGroup> memory, caf::actor group, const RunRank& spec,
                                          std::chrono::milliseconds stop_grace);

}  // namespace troupe::detail

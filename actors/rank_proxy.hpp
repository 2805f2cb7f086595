#pragma once

#include "rank_processes.hpp"

#include <troupe/caf_types.hpp>

#include <caf/actor.hpp>
#include <caf/event_based_actor.hpp>
#include <memory>

namespace troupe::detail {

/// Spawns the actor that speaks for a rank in one of `processes`, watching `group`: orders go to the process, news comes
/// back, and RankDone or RankLost follows when the process is gone, or is given back as good as new. A rank that
/// does not end `stop_grace` after an abort, or after its last message, is killed.
[[nodiscard]] caf::actor spawn_rank_proxy(caf::actor_system& system, std::shared_ptr<RankProcesses> processes, caf::actor group,
                                          const RunRank& spec, std::chrono::milliseconds stop_grace);

}  // namespace troupe::detail

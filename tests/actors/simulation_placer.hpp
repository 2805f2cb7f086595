#pragma once

#include <functional>
#include <memory>

#include <troupe/worker_group.hpp>

#include "simulation_rank.hpp"

namespace troupe::sim {

/// How ranks and the links to their processes misbehave.
struct RankFaults {
  int percent = 0;             ///< of the ranks of an attempt
  int start_failure_percent = 0;  ///< of the ranks: the placer throws
  int link_percent = 0;        ///< of the processes: their link breaks, and what was under way is lost
  Duration slowest_link{0};    ///< delay of a message
};

/// Places simulated ranks: real control actors, as threads or behind a link as processes have.
[[nodiscard]] std::unique_ptr<RankPlacer> make_simulated_placer(Stage& stage, const RankFaults& faults, const StartGroup& group);

}  // namespace troupe::sim

#pragma once

#include <memory>

#include "simulation_rank.hpp"

namespace troupe::sim {

/// A rank's process as the driver knows it: its messages take time and keep their order, it can die, and its link can break.
struct ProcessPlan {
  RunRank spec;
  Fate fate;
  std::shared_ptr<Gathering> gathering;
  std::chrono::milliseconds stop_grace{};
  Duration slowest_link{};
  int break_percent = 0;
};

/// Spawns what stands for the process, as a rank's proxy does, and starts that: inside are the real control actor and a
/// simulated train function.
[[nodiscard]] caf::actor spawn_simulated_process(caf::actor_system& system, Stage& stage, ProcessPlan plan, const caf::actor& group);

}  // namespace troupe::sim

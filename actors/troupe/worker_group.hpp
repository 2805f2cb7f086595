#pragma once

#include <troupe/rank.hpp>

#include <caf/actor.hpp>
#include <functional>
#include <memory>

namespace troupe {

/// Makes the placer that a StartGroup asks for. Throws Failure{StartFailed, Unsupported}.
using PlacerFactory = std::function<std::unique_ptr<RankPlacer>(const StartGroup&)>;

/// Spawns the actor that carries out one attempt: places every rank, watches every wait, and ends when nothing of the
/// attempt is left. Its first message is StartGroup, from its Trainer.
///
/// It tells `trainer` GroupStarted, Reported…, CheckpointWritten… and Progressed… of every rank, and GroupEnded exactly once, its last
/// message; it quits then. It takes StopGroup (at an agreed step boundary) and AbortGroup (at once), and links itself
/// to `trainer`.
[[nodiscard]] caf::actor spawn_worker_group(caf::actor_system& system, caf::actor trainer, PlacerFactory make_placer);

}  // namespace troupe

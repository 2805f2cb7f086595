#pragma once

#include "rank_processes.hpp"

#include <troupe/rank.hpp>

#include <memory>

namespace troupe {

/// Ranks in processes that outlive the attempt. Throws Failure{StartFailed}.
[[nodiscard]] std::unique_ptr<RankPlacer> make_placer_in(std::shared_ptr<detail::RankProcesses> processes, const StartGroup& group);

}  // namespace troupe

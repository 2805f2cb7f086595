#pragma once

#include "process_pool.hpp"

#include <troupe/rank.hpp>

#include <memory>

namespace troupe {

/// As make_process_placer, with processes that outlive the attempt. Throws Failure{StartFailed}.
[[nodiscard]] std::unique_ptr<RankPlacer> make_pooled_placer(std::shared_ptr<detail::ProcessPool> pool, const StartGroup& group);

}  // namespace troupe

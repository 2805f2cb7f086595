#pragma once

#include <troupe/session.hpp>

namespace troupe {

/// Train functions that step, for faults to strike; this program is its own rank.
[[nodiscard]] TrainFunctions fault_cases();

}  // namespace troupe

#pragma once

#include <vector>

namespace troupe::bench {

/// Seconds from the first of `num_ranks` rank actors sending one Reported until the actor above a
/// real WorkerGroup has them all, for each of `rounds` rounds. Rank actors without a thread of
/// their own: the group's cost is measured.
[[nodiscard]] std::vector<double> gather_reports(int num_ranks, int rounds);

}  // namespace troupe::bench

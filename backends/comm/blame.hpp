#pragma once

#include "shared_state.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// A collective that a rank waits for.
struct Awaited {
  std::uint64_t sequence;
  std::chrono::steady_clock::time_point deadline;
  std::chrono::milliseconds timeout;  ///< what the deadline came from
};

/// Sets of ranks as people write them: "0, 2-5".
[[nodiscard]] std::string list_ranks(const std::vector<int>& ranks);
/// "rank 3 is at all_gather #812 of `encoder.5` (F32 x 1024); ranks 0-2 are at …": the smallest party first, since it is
/// most likely the one that went astray. `ranks[i]` said `calls[i]`.
[[nodiscard]] std::string parties(const std::vector<int>& ranks, const std::vector<std::string>& calls);

/// True when all ranks, which must have posted, called the same; else fails the group, naming each rank's call.
[[nodiscard]] bool agree(SharedState& state, std::uint64_t sequence);
/// Fails the group when a rank has left it without coming, or the deadline has passed.
void end_when_nobody_comes(SharedState& state, int rank, const Awaited& awaited);

}  // namespace troupe::detail

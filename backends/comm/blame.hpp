#pragma once

#include "shared_state.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// A collective that a rank waits for.
struct Awaited {
  Call call;
  std::uint64_t sequence;
  std::chrono::steady_clock::time_point deadline;
  std::chrono::milliseconds timeout;  ///< what the deadline came from
};

/// Sets of ranks as people write them: "0, 2-5".
[[nodiscard]] std::string list_ranks(const std::vector<int>& ranks);

/// True when all ranks, which must have posted, called the same; else fails the group, naming each rank's call.
[[nodiscard]] bool agree(SharedState& state, std::uint64_t sequence);
/// Fails the group when a rank has left it without coming, or the deadline has passed.
void end_when_nobody_comes(SharedState& state, int rank, const Awaited& awaited);

}  // namespace troupe::detail

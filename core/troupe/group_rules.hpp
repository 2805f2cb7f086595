#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

// What a group of ranks concludes from who has come. Plain functions.

namespace troupe {

/// "rank 1", "ranks 1 and 3", "ranks 0, 1 and 3"; past eight of them "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 504 more".
[[nodiscard]] std::string name_ranks(const std::set<int>& ranks);

/// Ranks of 0…world_size-1 that are not in `came`.
[[nodiscard]] std::set<int> missing_ranks(int world_size, const std::set<int>& came);

/// After how many should_stop() calls every rank stops: the most that any has passed, so that none has to go back.
/// Nothing while an answer is missing.
/// @param counts by rank; a rank that has returned counts with all its calls.
[[nodiscard]] std::optional<std::uint64_t> stop_target(int world_size, const std::map<int, std::uint64_t>& counts);

/// What a rank that was told of a stop has done since.
struct StopHeed {
  std::uint64_t steps = 0;  ///< that it has completed
  bool looked = false;      ///< it has called should_stop()
};

/// Of a stop that lasts: who does not look for it, and what a loop must do, "rank 1 has completed 40 steps since without calling
/// should_stop(): …". Empty when all have looked.
[[nodiscard]] std::string unheeded_stop(const std::map<int, StopHeed>& ranks);

/// Why a wait failed: "ranks 1 and 3 did not start within 60 s".
[[nodiscard]] std::string did_not(const std::set<int>& ranks, const std::string& what,
                                  std::chrono::milliseconds limit);

}  // namespace troupe

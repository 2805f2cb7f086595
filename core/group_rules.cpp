#include <troupe/group_rules.hpp>

#include <algorithm>

namespace troupe {

std::string name_ranks(const std::set<int>& ranks) {
  constexpr std::size_t most = 8;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  std::size_t place = 0;
  for (const int rank : ranks) {
    if (place == most && ranks.size() > most + 1) {
      return text + " and " + std::to_string(ranks.size() - most) + " more";
    }
    if (place > 0) text += place + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(rank);
    ++place;
  }
  return text;
}

std::set<int> missing_ranks(int world_size, const std::set<int>& came) {
  std::set<int> missing;
  for (int rank = 0; rank < world_size; ++rank) {
    if (!came.contains(rank)) missing.insert(rank);
  }
  return missing;
}

std::optional<std::uint64_t> stop_target(int world_size, const std::map<int, std::uint64_t>& counts) {
  if (static_cast<int>(counts.size()) < world_size) return std::nullopt;
  std::uint64_t most = 0;
  for (const auto& [rank, calls] : counts) most = std::max(most, calls);
  return most;
}

std::string unheeded_stop(const std::map<int, StopHeed>& ranks) {
  std::set<int> passing, inside;
  std::uint64_t most = 0;
  for (const auto& [rank, heed] : ranks) {
    if (heed.looked) continue;
    (heed.steps > 0 ? passing : inside).insert(rank);
    most = std::max(most, heed.steps);
  }
  std::string text;
  if (!passing.empty()) {
    text = name_ranks(passing) + (passing.size() == 1 ? " has completed " : " have completed up to ") + std::to_string(most) + (most == 1 ? " step" : " steps") +
           " since without calling should_stop(): a loop that is to stop must call it on every rank, once a step";
  }
  if (!inside.empty()) {
    text += (text.empty() ? "" : "; ") + name_ranks(inside) + (inside.size() == 1 ? " has" : " have") + " completed no step since and not called should_stop()";
  }
  return text;
}

std::string did_not(const std::set<int>& ranks, const std::string& what, std::chrono::milliseconds limit) {
  const auto ms = limit.count();
  const auto time = ms % 1000 == 0 ? std::to_string(ms / 1000) + " s" : std::to_string(ms) + " ms";
  return name_ranks(ranks) + " did not " + what + " within " + time;
}

}  // namespace troupe

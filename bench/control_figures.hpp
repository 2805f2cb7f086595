#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace troupe::bench {

/// Seconds of the host's monotonic clock, the same in all its processes.
inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/// A figure's goal: `peer` is a limit of ours or what another loop did in the same run.
struct Goal {
  std::string unit;
  double peer = 0;
  std::string peer_name;
  bool higher_is_better = false;
  double least_ratio = 1;  ///< how many times better than the peer ours must be
};

/// One object of bench/results.json, without its commit (docs/benchmarks.md).
/// @param paired_ratio the median of the pairs' ratios, where ours and the peer took turns: noise
/// falls on both of a pair.
inline nlohmann::ordered_json figure(const std::string& name, double ours, const Goal& goal,
                                     std::size_t runs, std::optional<double> paired_ratio = {}) {
  const double ratio =
      paired_ratio.value_or(goal.higher_is_better ? ours / goal.peer : goal.peer / ours);
  const bool holds = ratio >= goal.least_ratio;
  std::fprintf(stderr, "%-28s %10.4g %10.4g %-10s %s\n", name.c_str(), ours, goal.peer,
               goal.unit.c_str(), holds ? "holds" : "MISSES");
  return {{"figure", name},
          {"ours", ours},
          {"peer", goal.peer},
          {"peer_name", goal.peer_name},
          {"unit", goal.unit},
          {"ratio", ratio},
          {"goal", goal.least_ratio},
          {"holds", holds},
          {"runs", runs}};
}

}  // namespace troupe::bench

#include "shard_combinations.hpp"

#include <algorithm>
#include <set>
#include <utility>

namespace troupe::test {

std::string Combination::text() const {
  // The first step of fp16 overflows, so that a skipped one is in every run.
  const auto scale = precision == "fp16" ? "fp16,scale=" + std::to_string((1 << 16) * accumulation) + "," : precision == "fp32" ? "" : precision + ",";
  return strategy + ",accumulation=" + std::to_string(accumulation) + "," + scale + (offload == "none" ? "" : "offload=" + offload + ",") +
         (recompute ? "recompute," : "") + "dropout=0.3,clip=0.5,blocks=2,steps=" + (precision == "fp16" ? "6" : "3");
}

std::string Combination::reference() const {
  const bool whole = strategy.starts_with("replicate");
  const bool windows_first = whole || strategy.starts_with("zero1");
  const auto group = strategy.find("group=");
  return (windows_first ? "windows first" : "ranks first") + std::string{whole && precision != "fp32" ? ", autocast" : ""} + ", " +
         (group == std::string::npos ? "" : strategy.substr(group)) + ", " + std::to_string(ranks) + ", " + std::to_string(accumulation) + ", " + precision;
}

std::vector<Combination> all_combinations(int ranks, const std::string& precision) {
  std::vector<std::string> strategies{"replicate", "zero1", "zero2", "zero3", "zero3,reshard=0"};
  if (ranks > 1) strategies.emplace_back("zero3,group=1");
  if (ranks == 4) strategies.insert(strategies.end(), {"zero1,group=2", "zero2,group=2", "zero3,group=2"});
  std::vector<Combination> all;
  for (const auto& strategy : strategies) {
    for (const int accumulation : {1, 2, 4}) {
      for (const auto* offload : {"none", "host", "disk", "disk_params"}) {
        // Replicate has no state of the engine's to offload, and only ZeRO-3 has parameters that lie elsewhere between uses.
        if (strategy == "replicate" && offload != std::string{"none"}) continue;
        if (!strategy.starts_with("zero3") && offload == std::string{"disk_params"}) continue;
        for (const bool recompute : {false, true}) all.push_back({strategy, ranks, accumulation, precision, offload, recompute});
      }
    }
  }
  return all;
}

std::vector<Combination> covering(const std::vector<Combination>& all) {
  using Pair = std::pair<std::string, std::string>;
  const auto pairs_of = [](const Combination& c) {
    const std::vector<std::string> values{c.strategy, "accumulation " + std::to_string(c.accumulation), c.precision, "offload " + c.offload,
                                          c.recompute ? "recompute" : "keep"};
    std::vector<Pair> pairs;
    for (std::size_t i = 0; i < values.size(); ++i) {
      for (std::size_t j = i + 1; j < values.size(); ++j) pairs.emplace_back(values[i], values[j]);
    }
    return pairs;
  };
  std::set<Pair> missing;
  for (const auto& c : all) {
    for (auto& pair : pairs_of(c)) missing.insert(std::move(pair));
  }
  std::vector<Combination> chosen;
  while (!missing.empty()) {
    const auto gain = [&](const Combination& c) {
      const auto pairs = pairs_of(c);
      return std::count_if(pairs.begin(), pairs.end(), [&](const Pair& pair) { return missing.contains(pair); });
    };
    const auto best = std::max_element(all.begin(), all.end(), [&](const auto& a, const auto& b) { return gain(a) < gain(b); });
    for (const auto& pair : pairs_of(*best)) missing.erase(pair);
    chosen.push_back(*best);
  }
  return chosen;
}

}  // namespace troupe::test

#pragma once

#include "shard_run.hpp"

#include <string>
#include <vector>

namespace troupe::test {

/// One way to train: what "zero3,reshard=0", 2 ranks, accumulation 4, fp16, … come to as the words of `case_from`.
struct Combination {
  std::string strategy;
  int ranks = 1;
  int accumulation = 1;
  std::string precision;   ///< fp32, bf16, fp16
  std::string offload;     ///< none, host, disk, disk_params
  bool recompute = false;
  /// As `case_from` reads it, and as a failure shows it.
  [[nodiscard]] std::string text() const;
  /// Combinations of one name train to the same bits.
  [[nodiscard]] std::string reference() const;
};

/// Every valid combination of these ranks and this precision; dropout is on in all of them.
[[nodiscard]] std::vector<Combination> all_combinations(int ranks, const std::string& precision);
/// A part of them in which every two values of two properties come together that do so in the whole.
[[nodiscard]] std::vector<Combination> covering(const std::vector<Combination>& all);

}  // namespace troupe::test

#pragma once

#include <troupe/data/sharding.hpp>

#include <cstdint>

namespace troupe {

/// 0, 1, … n-1.
[[nodiscard]] Indices sequential_order(std::size_t num_samples);

/// A permutation of 0 … n-1: torch.randperm on a CPU generator seeded with `seed`, number for number.
[[nodiscard]] Indices random_order(std::size_t num_samples, std::uint64_t seed);

/// Accelerate's SeedableRandomSampler: `random_order` seeded with seed + epoch.
[[nodiscard]] inline Indices seedable_random_order(std::size_t num_samples, std::uint64_t seed, std::int64_t epoch) {
  return random_order(num_samples, seed + static_cast<std::uint64_t>(epoch));
}

}  // namespace troupe

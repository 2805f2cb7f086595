#pragma once

#include <cstdint>

namespace at {
struct Generator;
}

namespace troupe {

/// The calling thread's random generator. LibTorch's default generator is one per process, and
/// thread ranks share a process, so dropout, initialisation and shuffling draw from this one: a
/// rank's numbers do not depend on its peers.
///
/// Threads: each has its own. A new thread's is seeded like LibTorch's default (67280421310721).
[[nodiscard]] at::Generator& rank_generator();

/// Seeds the calling rank's generator (dropout, initialisation, shuffling). `device_specific` adds
/// the rank.
void set_seed(std::uint64_t seed, bool device_specific = false, int rank = 0);

}  // namespace troupe

#pragma once

#include <troupe/communicator.hpp>

#include <chrono>
#include <cstdint>
#include <memory>

namespace troupe {

/// A wire between ranks. What is sent over it follows `Traffic`'s formulas, one collective after another.
struct Wire {
  std::chrono::nanoseconds latency{0};
  double bytes_per_second = 0;         ///< 0: as many as you like
  std::chrono::nanoseconds jitter{0};  ///< every collective takes up to so much longer
  std::uint64_t seed = 0;              ///< of the jitter
};

/// For tests: `group` over a wire. A collective that succeeds is not finished before the wire is done with it, and
/// waiting for that takes no processor time; results are those of `group`. Groups split from it share the wire.
[[nodiscard]] std::unique_ptr<Communicator> delayed_communicator(std::unique_ptr<Communicator> group, const Wire& wire);

}  // namespace troupe

#pragma once

#include <cstdint>

namespace troupe {

/// A run of items: first, first + 1, … first + count - 1.
struct IndexRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  bool operator==(const IndexRange&) const = default;
};

/// Rank `rank`'s share of `length` items: contiguous, in rank order, the first `length % num_ranks` ranks with one more.
/// Throws Failure{InvalidArgument} on a negative length or a rank out of range.
[[nodiscard]] IndexRange split_range(std::int64_t length, int num_ranks, int rank);

/// The longest share of all: what every share is padded to, by repeating its last item (or, when it is empty, the last
/// item of all).
[[nodiscard]] std::int64_t longest_split(std::int64_t length, int num_ranks);

}  // namespace troupe

#pragma once

#include <troupe/communicator.hpp>

#include <cstddef>
#include <span>

namespace troupe::detail {

/// Throws Failure{InvalidArgument} when elements of `dtype` have no such reduction (the mean of integers).
void check_reducible(DType dtype, ReduceOp op);

/// What is done to each element.
struct Reduction {
  DType from;
  DType to;  ///< `from`; or F32 for a 16-bit float, and the other way
  ReduceOp op;
  std::size_t divisor = 0;  ///< of a mean whose sources are sums already; 0: the number of sources
};

/// Combines `count` elements of all sources, in the order of the sources, and writes the result to every target.
/// 16-bit floats are combined in fp32 and rounded once, or not at all. A NaN in any source makes max and min NaN.
/// A target may be a source. Bool: sum and max are "or", min is "and". Integers wrap.
void reduce(const Reduction& reduction, std::span<std::byte* const> sources, std::span<std::byte* const> targets, std::size_t count);

/// Copies `bytes` from `source` to every target; one that is the source itself is left alone.
/// @param past_cache writes around the caches: twice as fast for what is too large to stay in them, and slower to read next.
void copy(const std::byte* source, std::span<std::byte* const> targets, std::size_t bytes, bool past_cache);

}  // namespace troupe::detail

#pragma once

#include "kernels.hpp"

#include <algorithm>
#include <vector>

namespace troupe::detail {

/// Sums are made of pieces of this size, while they are in a cache.
constexpr std::size_t kSumBytes = std::size_t{64} << 10;
/// Of a lane's slice of a large all_reduce: what is reduced, sent, added and spread while it is in a cache.
constexpr std::size_t kSegmentBytes = std::size_t{512} << 10;
/// More would fill the ring of collectives inside a host with the segments under way.
constexpr int kMostLanesOfSegments = 16;

[[nodiscard]] inline bool is_16_bit_float(DType dtype) noexcept { return dtype == DType::BF16 || dtype == DType::F16; }
/// What sums of a host are handed on in.
[[nodiscard]] inline DType between(DType dtype, ReduceOp op) noexcept { return is_16_bit_float(dtype) && op <= ReduceOp::Mean ? DType::F32 : dtype; }
[[nodiscard]] inline ReduceOp inside(ReduceOp op) noexcept { return op == ReduceOp::Mean ? ReduceOp::Sum : op; }
static_assert(ReduceOp::Sum < ReduceOp::Mean && ReduceOp::Mean < ReduceOp::Max);

[[nodiscard]] inline std::byte* bytes_at(const void* data, std::size_t offset) { return static_cast<std::byte*>(const_cast<void*>(data)) + offset; }

/// Adds pieces of the hosts' partial sums as they come.
class Adder {
 public:
  Adder(const Reduction& reduction, std::size_t hosts) : reduction_(reduction), sources_(hosts), at_(hosts) {}
  void source(int host, std::byte* data) { sources_[static_cast<std::size_t>(host)] = data; }
  /// Adds up to element `ready` of `count`; false when that is not worth it yet.
  bool advance(std::byte* target, std::size_t ready, std::size_t count) {
    const auto element = size_of(reduction_.from), piece = kSumBytes / element, before = done_;
    while (done_ < count && (ready - done_ >= piece || ready == count)) {
      const auto some = std::min(ready - done_, piece);
      for (std::size_t h = 0; h < sources_.size(); ++h) at_[h] = sources_[h] + done_ * element;
      auto* to = target + done_ * size_of(reduction_.to);
      reduce(reduction_, at_, {&to, 1}, some);
      done_ += some;
    }
    return done_ != before;
  }
  [[nodiscard]] std::size_t done() const noexcept { return done_; }

 private:
  Reduction reduction_;
  std::vector<std::byte*> sources_, at_;
  std::size_t done_ = 0;
};

}  // namespace troupe::detail

#pragma once

#include <troupe/flight_recorder.hpp>

namespace troupe::detail {

/// A collective but for its bytes, in a word that can be an atomic.
[[nodiscard]] constexpr std::uint64_t pack(const Collective& c) noexcept {
  const auto byte = [](auto value, int at) { return static_cast<std::uint64_t>(value) << (8 * at); };
  return byte(c.call, 0) | byte(c.op, 1) | byte(c.dtype, 2) | byte(c.result, 3) | byte(static_cast<std::uint32_t>(c.root), 4);
}

[[nodiscard]] constexpr Collective unpack(std::uint64_t word, std::uint64_t bytes) noexcept {
  const auto byte = [word](int at) { return static_cast<std::uint8_t>(word >> (8 * at)); };
  return {static_cast<Call>(byte(0)),  static_cast<ReduceOp>(byte(1)), static_cast<DType>(byte(2)),
          static_cast<DType>(byte(3)), static_cast<std::int32_t>(word >> 32), bytes};
}

}  // namespace troupe::detail

#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace troupe::detail {

/// splitmix64 (Steele, Lea, Flood 2014): any 64 bits to well-mixed ones. Orders must be the same on every host and with every standard library,
/// so nothing of <random> is used.
inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) { return mix(mix(a) ^ b); }
template <typename... More>
std::uint64_t mix(std::uint64_t a, std::uint64_t b, More... more) {
  return mix(mix(a, b), static_cast<std::uint64_t>(more)...);
}

/// `x`, taken as a fraction of 2^64, times `n`: below n.
__extension__ using Wide = unsigned __int128;
inline std::uint64_t scale(std::uint64_t x, std::uint64_t n) {
  return static_cast<std::uint64_t>((static_cast<Wide>(x) * n) >> 64);
}

/// 0 … n-1 in an order that `seed` decides (Fisher-Yates).
inline std::vector<std::int64_t> permutation(std::int64_t n, std::uint64_t seed) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (std::uint64_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[scale(mix(seed, i), i)]);
  return order;
}

}  // namespace troupe::detail

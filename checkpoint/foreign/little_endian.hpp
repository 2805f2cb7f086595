#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace troupe::detail {

/// N bytes at `at`, least significant first; the caller has checked that they are there.
template <class T>
[[nodiscard]] T little_endian(std::span<const std::byte> bytes, std::size_t at) noexcept {
  T out = 0;
  for (std::size_t i = sizeof(T); i-- > 0;)
    out = static_cast<T>(static_cast<std::uint64_t>(out) << 8 |
                         std::to_integer<std::uint64_t>(bytes[at + i]));
  return out;
}

}  // namespace troupe::detail

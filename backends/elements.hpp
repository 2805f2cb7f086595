#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

// What loops over elements share: one copy of a loop for each generation of vector units, chosen by the loader, and 16-bit floats.
// Sanitizers cannot run the chooser.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define TROUPE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TROUPE_CLONES
#endif
#define TROUPE_INLINE [[gnu::always_inline]] inline

namespace troupe::detail {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

/// What elements of type T are computed in.
template <class T>
struct Accumulator {
  using type = T;
};
template <>
struct Accumulator<BFloat16> {
  using type = float;
};
template <>
struct Accumulator<Float16> {
  using type = float;
};

template <class T>
TROUPE_INLINE typename Accumulator<T>::type load(T value) {
  if constexpr (std::is_same_v<T, BFloat16>) return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
  else if constexpr (std::is_same_v<T, Float16>) return static_cast<float>(std::bit_cast<_Float16>(value.bits));
  else return value;
}

template <class T>
TROUPE_INLINE T store(typename Accumulator<T>::type value) {
  if constexpr (std::is_same_v<T, BFloat16>) {  // to nearest, ties to even
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto rounded = static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
    return {value == value ? rounded : std::uint16_t{0x7fc0}};
  } else if constexpr (std::is_same_v<T, Float16>) {
    return {std::bit_cast<std::uint16_t>(static_cast<_Float16>(value))};
  } else {
    return value;
  }
}

}  // namespace troupe::detail

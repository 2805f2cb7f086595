#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// What loops over elements share: one copy of a loop for each generation of vector units, chosen by the loader, which sanitizers cannot run;
// bf16; and an exponential that compilers turn into vector code.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define TROUPE_MODEL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TROUPE_MODEL_CLONES
#endif
#define TROUPE_MODEL_INLINE [[gnu::always_inline]] inline

namespace troupe::detail {

/// Bits of a bfloat16.
struct Bf16 {
  std::uint16_t bits;
};

TROUPE_MODEL_INLINE float widen(float value) { return value; }
TROUPE_MODEL_INLINE float widen(Bf16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }
TROUPE_MODEL_INLINE void put(float& to, float value) { to = value; }
/// To nearest, ties to even.
TROUPE_MODEL_INLINE void put(Bf16& to, float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto rounded = static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
  to.bits = value == value ? rounded : std::uint16_t{0x7FC0};
}

/// e^x, relative error below 2e-7; 0 below -87, infinity nowhere: x is at most 88.
TROUPE_MODEL_INLINE float exp_of(float x) {
  const float clamped = x < -87.0F ? -87.0F : x > 88.0F ? 88.0F : x;
  const float n = std::rint(clamped * 1.44269504F);
  const float r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;  // ln 2 in two parts
  float p = 1.9875691500e-4F;                                        // Cephes' polynomial
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const float scaled = p * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
  return x < -87.0F ? 0.0F : scaled;
}

}  // namespace troupe::detail

#include "dropout.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/BFloat16.h>

#include <array>
#include <bit>
#include <cstdint>
#include <mutex>
#include <troupe/random.hpp>

// One version for each vector width; sanitizers cannot instrument the resolver that picks it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define TROUPE_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TROUPE_VECTOR_CLONES
#endif

namespace troupe::detail {
namespace {

constexpr std::size_t kLanes = 16;  // one AVX-512 register of 32-bit states

/// Sixteen xorshift128 generators side by side (Marsaglia 2003), which compilers turn into vector
/// code.
struct Lanes {
  std::array<std::uint32_t, kLanes> x, y, z, w;

  explicit Lanes(std::uint64_t seed) {
    const auto next = [&] {  // splitmix64 (Steele et al. 2014)
      auto v = seed += 0x9E3779B97F4A7C15ULL;
      v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9ULL;
      v = (v ^ v >> 27) * 0x94D049BB133111EBULL;
      return static_cast<std::uint32_t>((v ^ v >> 31) >> 16) | 1U;  // never all zero
    };
    for (auto* const state : {&x, &y, &z, &w}) {
      for (auto& lane : *state) lane = next();
    }
  }
};

/// Fills `out` with `kept` where a 16-bit draw is below `threshold`, else 0.
template <class T>
__attribute__((always_inline)) inline void fill(T* out, std::size_t count, Lanes lanes,
                                                std::uint32_t threshold, T kept) {
  for (std::size_t i = 0; i < count; i += 2 * kLanes) {
    std::array<T, 2 * kLanes> block;
    for (std::size_t k = 0; k < kLanes; ++k) {
      const auto t = lanes.x[k] ^ lanes.x[k] << 11;
      lanes.x[k] = lanes.y[k];
      lanes.y[k] = lanes.z[k];
      lanes.z[k] = lanes.w[k];
      lanes.w[k] = lanes.w[k] ^ lanes.w[k] >> 19 ^ t ^ t >> 8;
      const auto draw = lanes.w[k] + lanes.y[k];  // the sum hides xorshift's linear low bits
      block[k] = (draw & 0xFFFF) < threshold ? kept : T{0};
      block[k + kLanes] = draw >> 16 < threshold ? kept : T{0};
    }
    const auto n = count - i < 2 * kLanes ? count - i : 2 * kLanes;
    for (std::size_t k = 0; k < n; ++k) out[i + k] = block[k];
  }
}

TROUPE_VECTOR_CLONES void fill32(std::uint32_t* out, std::size_t count, const Lanes& lanes,
                                 std::uint32_t threshold, std::uint32_t kept) {
  fill(out, count, lanes, threshold, kept);
}

TROUPE_VECTOR_CLONES void fill16(std::uint16_t* out, std::size_t count, const Lanes& lanes,
                                 std::uint32_t threshold, std::uint16_t kept) {
  fill(out, count, lanes, threshold, kept);
}

std::uint64_t draw_seed() {
  auto& generator = rank_generator();
  const std::scoped_lock lock{generator.mutex()};
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

}  // namespace

at::Tensor dropout(const at::Tensor& x, double p) {
  if (p == 0) return x;
  auto mask =
      at::empty_like(x.detach());  // needs no gradient, so the product's node keeps the mask alone
  const bool is_float = x.scalar_type() == at::kFloat;
  if (!x.is_cpu() || !mask.is_non_overlapping_and_dense() ||
      !(is_float || x.scalar_type() == at::kBFloat16)) {
    return x * mask.bernoulli_(1 - p, rank_generator()).mul_(1 / (1 - p));
  }
  const auto threshold = static_cast<std::uint32_t>((1 - p) * 65536 + 0.5);
  const auto scale = static_cast<float>(1 / (1 - p));
  const Lanes lanes{draw_seed()};
  const auto count = static_cast<std::size_t>(mask.numel());
  if (is_float) {
    fill32(static_cast<std::uint32_t*>(mask.mutable_data_ptr()), count, lanes, threshold,
           std::bit_cast<std::uint32_t>(scale));
  } else {
    fill16(static_cast<std::uint16_t*>(mask.mutable_data_ptr()), count, lanes, threshold,
           c10::BFloat16(scale).x);
  }
  return x * mask;
}

}  // namespace troupe::detail

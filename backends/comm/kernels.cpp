#include "kernels.hpp"

#include "elements.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace troupe::detail {

namespace {

/// Elements combined at once: their fp32 or fp64 sums stay in the first-level cache.
constexpr std::size_t kBlock = 1024;

struct Add {
  template <class A>
  TROUPE_INLINE static A of(A a, A b) {
    if constexpr (std::is_integral_v<A>) {
      using Wrapping = std::make_unsigned_t<A>;
      return static_cast<A>(static_cast<Wrapping>(static_cast<Wrapping>(a) + static_cast<Wrapping>(b)));
    } else {
      return a + b;
    }
  }
};
struct Larger {
  template <class A>
  TROUPE_INLINE static A of(A a, A b) { return (b > a) | (b != b) ? b : a; }
};
struct Smaller {
  template <class A>
  TROUPE_INLINE static A of(A a, A b) { return (b < a) | (b != b) ? b : a; }
};

// The loops that every kernel is made of; inlined into functions that are compiled for each vector unit.
template <class T, class A>
TROUPE_INLINE void begin(A* __restrict sum, const T* source, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) sum[i] = load(source[i]);
}
template <class F, class T, class A>
TROUPE_INLINE void begin(A* __restrict sum, const T* a, const T* b, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) sum[i] = F::of(load(a[i]), load(b[i]));
}
template <class F, class T, class A>
TROUPE_INLINE void combine(A* __restrict sum, const T* source, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) sum[i] = F::of(sum[i], load(source[i]));
}
template <class T, class A>
TROUPE_INLINE void finish(const A* __restrict sum, T* __restrict result, A divisor, std::size_t n) {
  if constexpr (!std::is_integral_v<A>) {
    if (divisor != A{1}) {
      for (std::size_t i = 0; i < n; ++i) result[i] = store<T>(sum[i] / divisor);
      return;
    }
  }
  for (std::size_t i = 0; i < n; ++i) result[i] = store<T>(sum[i]);
}

using Sources = std::span<std::byte* const>;

/// Elements of T, results of R: T or what T is added in.
template <class T, class F, class R>
TROUPE_INLINE void run(Sources sources, Sources targets, std::size_t count, std::size_t by) {
  using A = typename Accumulator<T>::type;
  alignas(64) A sum[kBlock];
  alignas(64) R result[kBlock];
  const bool mean = by != 1;
  const auto divisor = static_cast<A>(by);
  for (std::size_t at = 0; at < count; at += kBlock) {
    const auto n = std::min(kBlock, count - at);
    const auto part = [&](std::size_t s) { return reinterpret_cast<const T*>(sources[s]) + at; };
    if (sources.size() == 1) begin<T>(sum, part(0), n);
    else begin<F, T>(sum, part(0), part(1), n);
    for (std::size_t s = 2; s < sources.size(); ++s) combine<F, T>(sum, part(s), n);
    const R* from = result;
    if constexpr (std::is_same_v<A, R>) {
      if (!mean) from = sum;
    }
    if (from == result) finish<R>(sum, result, divisor, n);
    for (auto* target : targets) {
      // A target is mostly a source, just read, and rows of an embedding that no rank touched stay zero: what does not
      // change is not written, which halves the traffic for it. Elsewhere the first bytes differ.
      auto* const to = reinterpret_cast<R*>(target) + at;
      if (std::memcmp(to, from, n * sizeof(R)) != 0) std::memcpy(to, from, n * sizeof(R));
    }
  }
}

#define TROUPE_KERNEL(NAME, T, F, R) \
  TROUPE_CLONES void NAME(Sources sources, Sources targets, std::size_t count, std::size_t by) { run<T, F, R>(sources, targets, count, by); }
#define TROUPE_KERNELS(TYPE, T, R)        \
  TROUPE_KERNEL(add_##TYPE, T, Add, R)    \
  TROUPE_KERNEL(max_##TYPE, T, Larger, R) \
  TROUPE_KERNEL(min_##TYPE, T, Smaller, R)

TROUPE_KERNELS(f64, double, double)
TROUPE_KERNELS(f32, float, float)
TROUPE_KERNELS(f16, Float16, Float16)
TROUPE_KERNELS(bf16, BFloat16, BFloat16)
TROUPE_KERNELS(i64, std::int64_t, std::int64_t)
TROUPE_KERNELS(i32, std::int32_t, std::int32_t)
TROUPE_KERNELS(i16, std::int16_t, std::int16_t)
TROUPE_KERNELS(i8, std::int8_t, std::int8_t)
TROUPE_KERNELS(u8, std::uint8_t, std::uint8_t)
TROUPE_KERNELS(f16_wide, Float16, float)
TROUPE_KERNELS(bf16_wide, BFloat16, float)
TROUPE_KERNELS(f16_narrow, float, Float16)
TROUPE_KERNELS(bf16_narrow, float, BFloat16)

using Kernel = void (*)(Sources, Sources, std::size_t, std::size_t);
struct Kernels {
  Kernel add, max, min;
};
// In the order of DType.
constexpr Kernels kKernels[] = {
    {add_f64, max_f64, min_f64}, {add_f32, max_f32, min_f32}, {add_f16, max_f16, min_f16}, {add_bf16, max_bf16, min_bf16},
    {add_i64, max_i64, min_i64}, {add_i32, max_i32, min_i32}, {add_i16, max_i16, min_i16}, {add_i8, max_i8, min_i8},
    {add_u8, max_u8, min_u8},    {max_u8, max_u8, min_u8},
};
constexpr Kernels kWideF16{add_f16_wide, max_f16_wide, min_f16_wide}, kWideBF16{add_bf16_wide, max_bf16_wide, min_bf16_wide};
constexpr Kernels kNarrowF16{add_f16_narrow, max_f16_narrow, min_f16_narrow}, kNarrowBF16{add_bf16_narrow, max_bf16_narrow, min_bf16_narrow};

#if defined(__x86_64__)
/// A cache line is read once and written whole to each target, so that nothing is fetched for what is overwritten.
void stream(const std::byte* source, std::span<std::byte* const> targets, std::size_t bytes) {
  constexpr std::size_t line = 64;
  for (std::size_t at = 0; at + line <= bytes; at += line) {
    const auto* from = reinterpret_cast<const __m128i*>(source + at);
    const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
    for (auto* target : targets) {
      if (target == source) continue;
      auto* to = reinterpret_cast<__m128i*>(target + at);
      _mm_stream_si128(to, a);
      _mm_stream_si128(to + 1, b);
      _mm_stream_si128(to + 2, c);
      _mm_stream_si128(to + 3, d);
    }
  }
  _mm_sfence();
  const auto rest = bytes / line * line;
  for (auto* target : targets) {
    if (target != source) std::memcpy(target + rest, source + rest, bytes - rest);
  }
}
#endif

}  // namespace

void copy(const std::byte* source, std::span<std::byte* const> targets, std::size_t bytes, bool past_cache) {
#if defined(__x86_64__)
  const auto is_aligned = [](const std::byte* p) { return reinterpret_cast<std::uintptr_t>(p) % 64 == 0; };
  if (past_cache && std::all_of(targets.begin(), targets.end(), is_aligned)) return stream(source, targets, bytes);
#endif
  for (auto* target : targets) {
    if (target != source) std::memcpy(target, source, bytes);
  }
}

void check_reducible(DType dtype, ReduceOp op) {
  const bool is_float = dtype == DType::F64 || dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
  if (op == ReduceOp::Mean && !is_float)
    throw Failure{Errc::InvalidArgument, "the mean of " + std::string{name(dtype)} + " is no " + std::string{name(dtype)} +
                                             "; reduce a float, or take the sum"};
}

void reduce(const Reduction& reduction, Sources sources, Sources targets, std::size_t count) {
  const bool same = reduction.to == reduction.from;
  const auto& kernels = same                             ? kKernels[static_cast<std::size_t>(reduction.from)]
                        : reduction.from == DType::BF16 ? kWideBF16
                        : reduction.from == DType::F16  ? kWideF16
                        : reduction.to == DType::BF16   ? kNarrowBF16
                                                          : kNarrowF16;
  const auto op = reduction.op;
  const auto kernel = op == ReduceOp::Max ? kernels.max : op == ReduceOp::Min ? kernels.min : kernels.add;
  kernel(sources, targets, count, op != ReduceOp::Mean ? 1 : reduction.divisor != 0 ? reduction.divisor : sources.size());
}

}  // namespace troupe::detail

#include "gradients.hpp"

#include "device_gradients.hpp"
#include "elements.hpp"

#include <troupe/errors.hpp>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>

namespace troupe::detail {

namespace {

/// Elements that one thread takes at once; each block's sum of squares is formed alone, so that threads do not change the total.
constexpr std::int64_t kBlock = 1 << 16;

template <class T>
TROUPE_INLINE unsigned not_finite(T x) {
  return static_cast<unsigned>(!(std::abs(x) <= std::numeric_limits<T>::max()));
}

template <class T>
TROUPE_INLINE bool multiply(T* p, std::int64_t n, float factor) {
  using A = typename Accumulator<T>::type;
  unsigned bad = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const A x = load(p[i]);
    bad |= not_finite(x);
    p[i] = store<T>(x * static_cast<A>(factor));
  }
  return bad != 0;
}

template <class T>
TROUPE_INLINE bool search(const T* p, std::int64_t n) {
  unsigned bad = 0;
  for (std::int64_t i = 0; i < n; ++i) bad |= not_finite(load(p[i]));
  return bad != 0;
}

template <class T>
TROUPE_INLINE void clamp(T* p, std::int64_t n, float limit) {
  using A = typename Accumulator<T>::type;
  const A most = limit;
  for (std::int64_t i = 0; i < n; ++i) {
    const A x = load(p[i]);
    const A low = x < -most ? -most : x;
    p[i] = store<T>(low > most ? most : low);
  }
}

/// In 32 sums side by side, which vector units add at once.
template <class T>
TROUPE_INLINE double squares(const T* p, std::int64_t n) {
  constexpr int lanes = 32;
  alignas(64) double sum[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) {
      const double x = static_cast<double>(load(p[i + lane]));
      sum[lane] += x * x;
    }
  }
  double total = 0;
  for (const double s : sum) total += s;
  for (; i < n; ++i) {
    const double x = static_cast<double>(load(p[i]));
    total += x * x;
  }
  return total;
}

struct Kernels {
  std::int64_t element_bytes;
  bool (*multiply)(void*, std::int64_t, float);
  bool (*search)(const void*, std::int64_t);
  void (*clamp)(void*, std::int64_t, float);
  double (*squares)(const void*, std::int64_t);
};

#define TROUPE_GRADIENT_KERNELS(NAME, T)                                                                                             \
  TROUPE_CLONES bool multiply_##NAME(void* p, std::int64_t n, float f) { return multiply(static_cast<T*>(p), n, f); }                \
  TROUPE_CLONES bool search_##NAME(const void* p, std::int64_t n) { return search(static_cast<const T*>(p), n); }                    \
  TROUPE_CLONES void clamp_##NAME(void* p, std::int64_t n, float f) { clamp(static_cast<T*>(p), n, f); }                             \
  TROUPE_CLONES double squares_##NAME(const void* p, std::int64_t n) { return squares(static_cast<const T*>(p), n); }                \
  constexpr Kernels k_##NAME{sizeof(T), multiply_##NAME, search_##NAME, clamp_##NAME, squares_##NAME};

TROUPE_GRADIENT_KERNELS(f32, float)
TROUPE_GRADIENT_KERNELS(f64, double)
TROUPE_GRADIENT_KERNELS(f16, Float16)
TROUPE_GRADIENT_KERNELS(bf16, BFloat16)

const Kernels& kernels_for(const at::Tensor& gradient) {
  if (gradient.is_cpu() && gradient.layout() == at::kStrided) {
    switch (gradient.scalar_type()) {
      case at::kFloat: return k_f32;
      case at::kDouble: return k_f64;
      case at::kHalf: return k_f16;
      case at::kBFloat16: return k_bf16;
      default: break;
    }
  }
  throw Failure{Errc::Unsupported, "a gradient is " + gradient.toString() + ", but only dense fp32, fp64, bf16 and fp16 gradients can be " +
                                       "scaled and clipped; is there an embedding with sparse = true?"};
}

/// Calls f(kernels, data, elements, block number) for the blocks of every gradient; data is written back if `writes`.
template <class F>
void for_each_block(const std::vector<at::Tensor>& gradients, bool writes, const F& f) {
  const at::NoGradGuard no_grad;
  for (const auto& gradient : gradients) {
    if (!gradient.defined() || gradient.numel() == 0 || !gradient.is_cpu()) continue;
    const auto& kernels = kernels_for(gradient);
    const bool dense = gradient.is_non_overlapping_and_dense();
    const auto memory = dense ? gradient : gradient.contiguous();
    auto* data = static_cast<std::byte*>(memory.data_ptr());
    const auto count = memory.numel();
    at::parallel_for(0, (count + kBlock - 1) / kBlock, 1, [&](std::int64_t first, std::int64_t last) {
      for (auto b = first; b < last; ++b) {
        f(kernels, data + b * kBlock * kernels.element_bytes, std::min(kBlock, count - b * kBlock), b);
      }
    });
    if (writes && !dense) gradient.copy_(memory);
  }
}

/// Gradients that these loops cannot reach.
std::vector<at::Tensor> on_device(const std::vector<at::Tensor>& gradients) {
  std::vector<at::Tensor> there;
  for (const auto& gradient : gradients) {
    if (gradient.defined() && gradient.numel() > 0 && !gradient.is_cpu()) there.push_back(gradient);
  }
  return there;
}

}  // namespace

bool unscale_(const std::vector<at::Tensor>& gradients, double scale) {
  const auto factor = static_cast<float>(1.0 / scale);
  std::atomic<bool> bad{false};
  for_each_block(gradients, true, [&](const Kernels& k, void* data, std::int64_t n, std::int64_t) {
    if (k.multiply(data, n, factor)) bad.store(true, std::memory_order_relaxed);
  });
  return multiply_by_operations(on_device(gradients), factor) || bad;
}

bool all_finite(const std::vector<at::Tensor>& gradients) {
  std::atomic<bool> bad{false};
  for_each_block(gradients, false, [&](const Kernels& k, const void* data, std::int64_t n, std::int64_t) {
    if (!bad.load(std::memory_order_relaxed) && k.search(data, n)) bad.store(true, std::memory_order_relaxed);
  });
  return !bad && all_finite_by_operations(on_device(gradients));
}

double sum_of_squares(const std::vector<at::Tensor>& gradients) {
  double total = 0;
  std::vector<double> sums;
  for (const auto& gradient : gradients) {
    sums.assign(gradient.defined() ? static_cast<std::size_t>((gradient.numel() + kBlock - 1) / kBlock) : 0, 0.0);
    for_each_block({gradient}, false, [&](const Kernels& k, const void* data, std::int64_t n, std::int64_t b) {
      sums[static_cast<std::size_t>(b)] = k.squares(data, n);
    });
    for (const double sum : sums) total += sum;
  }
  return total + sum_of_squares_by_operations(on_device(gradients));
}

void scale_(const std::vector<at::Tensor>& gradients, float factor) {
  for_each_block(gradients, true, [&](const Kernels& k, void* data, std::int64_t n, std::int64_t) { (void)k.multiply(data, n, factor); });
  scale_by_operations(on_device(gradients), factor);
}

void clamp_(const std::vector<at::Tensor>& gradients, float limit) {
  for_each_block(gradients, true, [&](const Kernels& k, void* data, std::int64_t n, std::int64_t) { k.clamp(data, n, limit); });
  clamp_by_operations(on_device(gradients), limit);
}

}  // namespace troupe::detail

#include "kernels.hpp"

#include "device_kernels.hpp"
#include "elements.hpp"

#include <troupe/errors.hpp>

#include <ATen/Parallel.h>

#include <cmath>
#include <string>

// Compiled with -ffp-contract=off: a multiplication and an addition are rounded one by one in every vector unit and loop tail.

namespace troupe::detail {

namespace {

constexpr std::int64_t kGrain = 32768;  // elements worth a thread

template <class T>
TROUPE_INLINE void update(const Elements& e, const AdamStep& s) {
  using A = typename Accumulator<T>::type;
  auto* __restrict p = static_cast<T*>(e.param);
  const auto* __restrict g = static_cast<const T*>(e.grad);
  auto* __restrict m = static_cast<T*>(e.state[0]);
  auto* __restrict v = static_cast<T*>(e.state[1]);
  const A l2 = static_cast<A>(s.l2), keep = static_cast<A>(s.keep), fresh1 = static_cast<A>(1 - s.beta1), beta2 = static_cast<A>(s.beta2),
          fresh2 = static_cast<A>(1 - s.beta2), step_size = static_cast<A>(s.step_size), inverse_root = static_cast<A>(s.inverse_root),
          eps = static_cast<A>(s.eps);
  for (std::int64_t i = 0; i < e.count; ++i) {
    const A w = load(p[i]);
    const A d = load(g[i]) + l2 * w;
    const A first = load(m[i]) + fresh1 * (d - load(m[i]));
    const A second = beta2 * load(v[i]) + fresh2 * d * d;
    m[i] = store<T>(first);
    v[i] = store<T>(second);
    p[i] = store<T>(w * keep - step_size * first / (std::sqrt(second) * inverse_root + eps));
  }
}

template <class T>
TROUPE_INLINE void update(const Elements& e, const SgdStep& s) {
  using A = typename Accumulator<T>::type;
  auto* __restrict p = static_cast<T*>(e.param);
  const auto* __restrict g = static_cast<const T*>(e.grad);
  auto* __restrict b = static_cast<T*>(e.state[0]);
  const A l2 = static_cast<A>(s.l2), momentum = static_cast<A>(s.momentum), fresh = static_cast<A>(s.fresh), lr = static_cast<A>(s.lr),
          ahead = static_cast<A>(s.nesterov_momentum);
  if (!b) {
    for (std::int64_t i = 0; i < e.count; ++i) {
      const A w = load(p[i]);
      p[i] = store<T>(w - lr * (load(g[i]) + l2 * w));
    }
  } else if (s.nesterov) {
    for (std::int64_t i = 0; i < e.count; ++i) {
      const A w = load(p[i]);
      const A d = load(g[i]) + l2 * w;
      const A speed = momentum * load(b[i]) + fresh * d;
      b[i] = store<T>(speed);
      p[i] = store<T>(w - lr * (d + ahead * speed));
    }
  } else {
    for (std::int64_t i = 0; i < e.count; ++i) {
      const A w = load(p[i]);
      const A speed = momentum * load(b[i]) + fresh * (load(g[i]) + l2 * w);
      b[i] = store<T>(speed);
      p[i] = store<T>(w - lr * speed);
    }
  }
}

template <class T>
TROUPE_INLINE void update(const Elements& e, const AdagradStep& s) {
  using A = typename Accumulator<T>::type;
  auto* __restrict p = static_cast<T*>(e.param);
  const auto* __restrict g = static_cast<const T*>(e.grad);
  auto* __restrict sum = static_cast<T*>(e.state[0]);
  const A l2 = static_cast<A>(s.l2), lr = static_cast<A>(s.lr), eps = static_cast<A>(s.eps);
  for (std::int64_t i = 0; i < e.count; ++i) {
    const A w = load(p[i]);
    const A d = load(g[i]) + l2 * w;
    const A total = load(sum[i]) + d * d;
    sum[i] = store<T>(total);
    p[i] = store<T>(w - lr * d / (std::sqrt(total) + eps));
  }
}

template <class T>
TROUPE_INLINE void update(const Elements& e, const LionStep& s) {
  using A = typename Accumulator<T>::type;
  auto* __restrict p = static_cast<T*>(e.param);
  const auto* __restrict g = static_cast<const T*>(e.grad);
  auto* __restrict m = static_cast<T*>(e.state[0]);
  const A keep = static_cast<A>(s.keep), beta1 = static_cast<A>(s.beta1), fresh1 = static_cast<A>(1 - s.beta1), beta2 = static_cast<A>(s.beta2),
          fresh2 = static_cast<A>(1 - s.beta2), lr = static_cast<A>(s.lr);
  for (std::int64_t i = 0; i < e.count; ++i) {
    const A d = load(g[i]);
    const A mean = load(m[i]);
    const A direction = beta1 * mean + fresh1 * d;
    const A move = direction > 0 ? lr : direction < 0 ? -lr : A{0};
    m[i] = store<T>(beta2 * mean + fresh2 * d);
    p[i] = store<T>(load(p[i]) * keep - move);
  }
}

#define TROUPE_UPDATE(NAME, STEP, T) \
  TROUPE_CLONES void NAME(const Elements& e, const STEP& s) { update<T>(e, s); }
#define TROUPE_UPDATES(NAME, STEP)           \
  TROUPE_UPDATE(NAME##_f32, STEP, float)     \
  TROUPE_UPDATE(NAME##_f64, STEP, double)    \
  TROUPE_UPDATE(NAME##_f16, STEP, Float16)   \
  TROUPE_UPDATE(NAME##_bf16, STEP, BFloat16) \
  constexpr Kernels<STEP> k_##NAME{NAME##_f32, NAME##_f64, NAME##_f16, NAME##_bf16};

template <class Step>
struct Kernels {
  void (*f32)(const Elements&, const Step&);
  void (*f64)(const Elements&, const Step&);
  void (*f16)(const Elements&, const Step&);
  void (*bf16)(const Elements&, const Step&);
};
TROUPE_UPDATES(adam, AdamStep)
TROUPE_UPDATES(sgd, SgdStep)
TROUPE_UPDATES(adagrad, AdagradStep)
TROUPE_UPDATES(lion, LionStep)

template <class Step>
void run(const Kernels<Step>& kernels, const Elements& elements, const Step& step) {
  if (!elements.device.is_cpu()) return by_operations(elements, step);
  const auto kernel = [&] {
    switch (elements.dtype) {
      case at::kFloat: return kernels.f32;
      case at::kDouble: return kernels.f64;
      case at::kHalf: return kernels.f16;
      case at::kBFloat16: return kernels.bf16;
      default: throw Failure{Errc::Unsupported, std::string{"optimizer: a parameter is "} + c10::toString(elements.dtype) +
                                                    ", but only fp32, fp64, bf16 and fp16 can be trained"};
    }
  }();
  if (elements.count <= kGrain) return kernel(elements, step);  // as parallel_for, without its set-up
  at::parallel_for(0, elements.count, kGrain, [&](std::int64_t first, std::int64_t last) { kernel(elements.part(first, last - first), step); });
}

}  // namespace

void adam(const Elements& elements, const AdamStep& step) { run(k_adam, elements, step); }
void sgd(const Elements& elements, const SgdStep& step) { run(k_sgd, elements, step); }
void adagrad(const Elements& elements, const AdagradStep& step) { run(k_adagrad, elements, step); }
void lion(const Elements& elements, const LionStep& step) { run(k_lion, elements, step); }

}  // namespace troupe::detail

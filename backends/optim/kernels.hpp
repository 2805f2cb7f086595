#pragma once

#include <troupe/optimizer.hpp>

namespace troupe::detail {

// Updates of elements, one pass over memory, by at::get_num_threads() threads. An element's result depends on nothing but its
// own values: not on its place, the length, the number of threads or the vector unit (every operation is rounded, none fused),
// so a shard is updated as the whole would be, bit for bit. 16-bit floats are computed in fp32.
// Errors: Failure{Unsupported} for another dtype than fp32, fp64, bf16, fp16.

/// g += l2·p;  p *= keep;  m += (1-beta1)(g-m);  v = beta2·v + (1-beta2)g²;  p -= step_size·m / (√v·inverse_root + eps).
struct AdamStep {
  double l2, keep, beta1, beta2, step_size, inverse_root, eps;
};
void adam(const Elements& elements, const AdamStep& step);

/// g += l2·p;  b = momentum·b + fresh·g where there is a b;  p -= lr·(nesterov ? g + momentum·b : b).
struct SgdStep {
  double l2, momentum, fresh, nesterov_momentum, lr;
  bool nesterov;
};
void sgd(const Elements& elements, const SgdStep& step);

/// g += l2·p;  s += g²;  p -= lr·g / (√s + eps).
struct AdagradStep {
  double l2, lr, eps;
};
void adagrad(const Elements& elements, const AdagradStep& step);

/// p *= keep;  p -= lr·sign(beta1·m + (1-beta1)g);  m = beta2·m + (1-beta2)g.
struct LionStep {
  double keep, beta1, beta2, lr;
};
void lion(const Elements& elements, const LionStep& step);

}  // namespace troupe::detail

#include "device_kernels.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/sign.h>
#include <ATen/ops/sqrt.h>

namespace troupe::detail {

namespace {

/// A run of elements as a tensor that one may compute with: 16-bit floats in fp32.
class Values {
 public:
  Values(const Elements& elements, const void* data)
      : memory_(at::from_blob(const_cast<void*>(data), {elements.count}, at::TensorOptions().dtype(elements.dtype).device(elements.device))),
        wide_(elements.dtype == at::kHalf || elements.dtype == at::kBFloat16 ? memory_.to(at::kFloat) : memory_) {}
  operator const at::Tensor&() const { return wide_; }
  void set(const at::Tensor& values) { memory_.copy_(values); }

 private:
  at::Tensor memory_, wide_;
};

at::Tensor decayed(const at::Tensor& gradient, const at::Tensor& param, double l2) { return l2 == 0 ? gradient : gradient + param * l2; }

}  // namespace

void by_operations(const Elements& e, const AdamStep& s) {
  const at::NoGradGuard no_grad;
  Values p{e, e.param}, m{e, e.state[0]}, v{e, e.state[1]};
  const Values g{e, e.grad};
  const at::Tensor &w = p, &mean = m, &square = v;
  const auto d = decayed(g, w, s.l2);
  const auto first = mean + (d - mean) * (1 - s.beta1);
  const auto second = square * s.beta2 + d * (1 - s.beta2) * d;
  p.set(w * s.keep - first * s.step_size / (at::sqrt(second) * s.inverse_root + s.eps));
  m.set(first);
  v.set(second);
}

void by_operations(const Elements& e, const SgdStep& s) {
  const at::NoGradGuard no_grad;
  Values p{e, e.param};
  const Values g{e, e.grad};
  const at::Tensor& w = p;
  const auto d = decayed(g, w, s.l2);
  if (!e.state[0]) return p.set(w - d * s.lr);
  Values b{e, e.state[0]};
  const at::Tensor& before = b;
  const auto speed = before * s.momentum + d * s.fresh;
  p.set(w - (s.nesterov ? d + speed * s.nesterov_momentum : speed) * s.lr);
  b.set(speed);
}

void by_operations(const Elements& e, const AdagradStep& s) {
  const at::NoGradGuard no_grad;
  Values p{e, e.param}, sum{e, e.state[0]};
  const Values g{e, e.grad};
  const at::Tensor &w = p, &before = sum;
  const auto d = decayed(g, w, s.l2);
  const auto total = before + d * d;
  p.set(w - d * s.lr / (at::sqrt(total) + s.eps));
  sum.set(total);
}

void by_operations(const Elements& e, const LionStep& s) {
  const at::NoGradGuard no_grad;
  Values p{e, e.param}, m{e, e.state[0]};
  const Values g{e, e.grad};
  const at::Tensor &w = p, &mean = m, &d = g;
  const auto direction = mean * s.beta1 + d * (1 - s.beta1);
  p.set(w * s.keep - at::sign(direction) * s.lr);
  m.set(mean * s.beta2 + d * (1 - s.beta2));
}

}  // namespace troupe::detail

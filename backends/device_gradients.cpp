#include "device_gradients.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/stack.h>

namespace troupe::detail {

namespace {

template <class F>
void for_each_gradient(const std::vector<at::Tensor>& gradients, const F& f) {
  const at::NoGradGuard no_grad;
  for (const auto& gradient : gradients) {
    if (gradient.layout() != at::kStrided) {
      throw Failure{Errc::Unsupported, "a gradient is " + gradient.toString() + ", but only dense gradients can be scaled and clipped; is there an "
                                       "embedding with sparse = true?"};
    }
    f(gradient);
  }
}

}  // namespace

bool all_finite_by_operations(const std::vector<at::Tensor>& gradients) {
  std::vector<at::Tensor> finite;
  for_each_gradient(gradients, [&](const at::Tensor& g) { finite.push_back(at::isfinite(g).all()); });
  return finite.empty() || at::stack(finite).all().item<bool>();
}

bool multiply_by_operations(const std::vector<at::Tensor>& gradients, float factor) {
  const bool finite = all_finite_by_operations(gradients);
  scale_by_operations(gradients, factor);
  return !finite;
}

double sum_of_squares_by_operations(const std::vector<at::Tensor>& gradients) {
  std::vector<at::Tensor> norms;
  for_each_gradient(gradients, [&](const at::Tensor& g) { norms.push_back(at::linalg_vector_norm(g, 2, at::OptionalIntArrayRef{}, false, at::kDouble)); });
  return norms.empty() ? 0 : at::stack(norms).square().sum().item<double>();
}

void scale_by_operations(const std::vector<at::Tensor>& gradients, float factor) {
  for_each_gradient(gradients, [factor](const at::Tensor& g) {
    if (g.element_size() > 2) g.mul_(static_cast<double>(factor));
    else g.copy_(g.to(at::kFloat).mul_(static_cast<double>(factor)));  // else the factor is rounded to 16 bits, too
  });
}

void clamp_by_operations(const std::vector<at::Tensor>& gradients, float limit) {
  for_each_gradient(gradients, [limit](const at::Tensor& g) { g.clamp_(-limit, limit); });
}

}  // namespace troupe::detail

#include "kernels.hpp"
#include "settings.hpp"

#include <cmath>

namespace troupe {

namespace {

template <class Options>
const Options& checked(const char* name, const Options& o) {
  detail::require_positive(name, "lr", o.lr);
  detail::require_positive(name, "eps", o.eps);
  detail::require_positive(name, "weight_decay", o.weight_decay);
  detail::require_fraction(name, "beta1", o.beta1);
  detail::require_fraction(name, "beta2", o.beta2);
  return o;
}

template <class Options>
ParamGroup own(const Options& o) {
  return {.params = {}, .lr = o.lr, .weight_decay = o.weight_decay, .beta1 = o.beta1, .beta2 = o.beta2, .momentum = 0};
}

void adam(const detail::Elements& elements, const ParamGroup& group, std::int64_t step, double l2, double keep, double eps) {
  const auto t = static_cast<double>(step);
  detail::adam(elements, {.l2 = l2,
                          .keep = keep,
                          .beta1 = group.beta1,
                          .beta2 = group.beta2,
                          .step_size = group.lr / (1 - std::pow(group.beta1, t)),
                          .inverse_root = 1 / std::sqrt(1 - std::pow(group.beta2, t)),
                          .eps = eps});
}

}  // namespace

AdamW::AdamW(std::vector<at::Tensor> params, AdamWOptions options) : AdamW(detail::one_group(std::move(params)), options) {}
AdamW::AdamW(std::vector<ParamGroup> groups, AdamWOptions options)
    : Optimizer("AdamW", std::move(groups), own(checked("AdamW", options)), {{"exp_avg"}, {"exp_avg_sq"}}), eps_(options.eps) {}

void AdamW::apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) {
  adam(elements, group, step, 0, 1 - group.lr * group.weight_decay, eps_);
}

Adam::Adam(std::vector<at::Tensor> params, AdamOptions options) : Adam(detail::one_group(std::move(params)), options) {}
Adam::Adam(std::vector<ParamGroup> groups, AdamOptions options)
    : Optimizer("Adam", std::move(groups), own(checked("Adam", options)), {{"exp_avg"}, {"exp_avg_sq"}}), eps_(options.eps) {}

void Adam::apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) {
  adam(elements, group, step, group.weight_decay, 1, eps_);
}

}  // namespace troupe

#include "kernels.hpp"
#include "settings.hpp"

namespace troupe {

namespace {

const LionOptions& checked(const LionOptions& o) {
  detail::require_positive("Lion", "lr", o.lr);
  detail::require_positive("Lion", "weight_decay", o.weight_decay);
  detail::require_fraction("Lion", "beta1", o.beta1);
  detail::require_fraction("Lion", "beta2", o.beta2);
  return o;
}

}  // namespace

Lion::Lion(std::vector<at::Tensor> params, LionOptions options) : Lion(detail::one_group(std::move(params)), options) {}
Lion::Lion(std::vector<ParamGroup> groups, LionOptions options)
    : Optimizer("Lion", std::move(groups),
                {.params = {}, .lr = checked(options).lr, .weight_decay = options.weight_decay, .beta1 = options.beta1, .beta2 = options.beta2, .momentum = 0},
                {{"exp_avg"}}) {}

void Lion::apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t) {
  detail::lion(elements, {.keep = 1 - group.lr * group.weight_decay, .beta1 = group.beta1, .beta2 = group.beta2, .lr = group.lr});
}

}  // namespace troupe

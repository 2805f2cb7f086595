#include "kernels.hpp"
#include "settings.hpp"

namespace troupe {

namespace {

const AdagradOptions& checked(const AdagradOptions& o) {
  detail::require_positive("Adagrad", "lr", o.lr);
  detail::require_positive("Adagrad", "lr_decay", o.lr_decay);
  detail::require_positive("Adagrad", "weight_decay", o.weight_decay);
  detail::require_positive("Adagrad", "initial_accumulator_value", o.initial_accumulator_value);
  detail::require_positive("Adagrad", "eps", o.eps);
  return o;
}

}  // namespace

Adagrad::Adagrad(std::vector<at::Tensor> params, AdagradOptions options) : Adagrad(detail::one_group(std::move(params)), options) {}
Adagrad::Adagrad(std::vector<ParamGroup> groups, AdagradOptions options)
    : Optimizer("Adagrad", std::move(groups),
                {.params = {}, .lr = checked(options).lr, .weight_decay = options.weight_decay, .beta1 = 0, .beta2 = 0, .momentum = 0},
                {{"sum", options.initial_accumulator_value}}),
      lr_decay_(options.lr_decay),
      eps_(options.eps) {}

void Adagrad::apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) {
  detail::adagrad(elements, {.l2 = group.weight_decay, .lr = group.lr / (1 + static_cast<double>(step - 1) * lr_decay_), .eps = eps_});
}

}  // namespace troupe

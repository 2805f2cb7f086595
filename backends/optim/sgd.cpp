#include "kernels.hpp"
#include "settings.hpp"

#include <algorithm>

namespace troupe {

namespace {

const SGDOptions& checked(const SGDOptions& o) {
  detail::require_positive("SGD", "lr", o.lr);
  detail::require_positive("SGD", "momentum", o.momentum);
  detail::require_positive("SGD", "weight_decay", o.weight_decay);
  detail::require(!o.nesterov || (o.momentum > 0 && o.dampening == 0), "SGD", "nesterov", 1, "off, or used with momentum and no dampening");
  return o;
}

bool any_momentum(const std::vector<ParamGroup>& groups, const SGDOptions& o) {
  return o.momentum > 0 || std::any_of(groups.begin(), groups.end(), [](const ParamGroup& group) { return group.momentum > 0; });
}

}  // namespace

SGD::SGD(std::vector<at::Tensor> params, SGDOptions options) : SGD(detail::one_group(std::move(params)), options) {}
SGD::SGD(std::vector<ParamGroup> groups, SGDOptions options)
    : Optimizer("SGD", groups,
                {.params = {}, .lr = checked(options).lr, .weight_decay = options.weight_decay, .beta1 = 0, .beta2 = 0, .momentum = options.momentum},
                any_momentum(groups, options) ? std::vector<Slot>{{"momentum_buffer"}} : std::vector<Slot>{}),
      dampening_(options.dampening),
      nesterov_(options.nesterov) {}

void SGD::apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) {
  const bool first = step == 1;  // the buffer begins as the first gradient, undampened
  detail::sgd(elements, {.l2 = group.weight_decay,
                         .momentum = first ? 0 : group.momentum,
                         .fresh = first || group.momentum == 0 ? 1 : 1 - dampening_,
                         .nesterov_momentum = group.momentum,
                         .lr = group.lr,
                         .nesterov = nesterov_});
}

}  // namespace troupe

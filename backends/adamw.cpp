#include <troupe/errors.hpp>
#include <troupe/optimizer.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>

#include <map>
#include <sstream>

namespace troupe {

namespace {

/// State of one parameter; undefined until its first update.
struct Moments {
  at::Tensor exp_avg;
  at::Tensor exp_avg_sq;
  std::int64_t step = 0;
};

/// What one call of the fused kernel takes.
struct Lists {
  std::vector<at::Tensor> params, grads, exp_avgs, exp_avg_sqs, steps;
  void clear() {
    for (auto* list : {&params, &grads, &exp_avgs, &exp_avg_sqs, &steps}) list->clear();
  }
};

void check(const AdamWOptions& o) {
  const auto refuse = [](const char* field, double value, const char* range) {
    std::ostringstream text;
    text << "AdamW: " << field << " = " << value << ", but it must be " << range;
    throw Failure{Errc::InvalidArgument, text.str()};
  };
  if (!(o.lr >= 0)) refuse("lr", o.lr, "0 or more");
  if (!(o.eps >= 0)) refuse("eps", o.eps, "0 or more");
  if (!(o.weight_decay >= 0)) refuse("weight_decay", o.weight_decay, "0 or more");
  if (!(o.beta1 >= 0 && o.beta1 < 1)) refuse("beta1", o.beta1, "in [0, 1)");
  if (!(o.beta2 >= 0 && o.beta2 < 1)) refuse("beta2", o.beta2, "in [0, 1)");
}

}  // namespace

struct AdamW::Impl {
  AdamWOptions options;
  std::vector<Moments> moments;  // by parameter, over all groups
  Lists lists;                   // kept for its capacity

  /// Updates `group`, whose first parameter's state is moments[first].
  void update(const ParamGroup& group, std::size_t first) {
    lists.clear();
    std::int64_t shared_step = 0;  // parameters of one step count share a tensor: the kernel only reads it
    at::Tensor step;
    for (std::size_t i = 0; i < group.params.size(); ++i) {
      const auto& param = group.params[i];
      const auto& grad = param.grad();
      if (!grad.defined()) continue;
      auto& m = moments[first + i];
      if (!m.exp_avg.defined()) {
        m.exp_avg = at::zeros_like(param);
        m.exp_avg_sq = at::zeros_like(param);
      }
      if (++m.step != shared_step) {
        shared_step = m.step;
        step = at::full({}, static_cast<double>(m.step), at::kFloat);
      }
      lists.params.push_back(param);
      lists.grads.push_back(grad);
      lists.exp_avgs.push_back(m.exp_avg);
      lists.exp_avg_sqs.push_back(m.exp_avg_sq);
      lists.steps.push_back(step);
    }
    if (lists.params.empty()) return;
    at::_fused_adamw_(lists.params, lists.grads, lists.exp_avgs, lists.exp_avg_sqs, {}, lists.steps, group.lr, options.beta1,
                      options.beta2, group.weight_decay, options.eps, /*amsgrad=*/false, /*maximize=*/false);
    lists.clear();  // gradients must not outlive zero_grad
  }
};

AdamW::AdamW(std::vector<at::Tensor> params, AdamWOptions options)
    : AdamW(std::vector<ParamGroup>{{.params = std::move(params)}}, options) {}

AdamW::AdamW(std::vector<ParamGroup> groups, AdamWOptions options)
    : Optimizer(std::move(groups), options.lr, options.weight_decay), impl_(std::make_unique<Impl>()) {
  check(options);
  impl_->options = options;
  std::size_t count = 0;
  for (const auto& group : groups_) count += group.params.size();
  impl_->moments.resize(count);
}

AdamW::~AdamW() = default;

void AdamW::update() {
  const at::NoGradGuard no_grad;
  std::size_t first = 0;
  for (const auto& group : groups_) {
    impl_->update(group, first);
    first += group.params.size();
  }
}

std::vector<std::pair<std::string, at::Tensor>> AdamW::state() const {
  std::vector<std::pair<std::string, at::Tensor>> state;
  for (std::size_t i = 0; i < impl_->moments.size(); ++i) {
    const auto& m = impl_->moments[i];
    if (!m.exp_avg.defined()) continue;
    const auto index = std::to_string(i);
    state.emplace_back("exp_avg." + index, m.exp_avg);
    state.emplace_back("exp_avg_sq." + index, m.exp_avg_sq);
    state.emplace_back("step." + index, at::full({}, static_cast<double>(m.step), at::kFloat));
  }
  return state;
}

void AdamW::load_state(const std::vector<std::pair<std::string, at::Tensor>>& state) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> by_name(state.begin(), state.end());
  std::vector<Moments> loaded(impl_->moments.size());
  std::size_t i = 0;
  std::size_t used = 0;
  for (const auto& group : groups_) {
    for (const auto& param : group.params) {
      const auto index = std::to_string(i);
      auto& m = loaded[i++];
      if (!by_name.contains("step." + index)) continue;  // never updated when it was saved
      const auto take = [&](const std::string& name) {
        const auto found = by_name.find(name + "." + index);
        if (found == by_name.end() || found->second.sizes() != param.sizes()) {
          throw Failure{Errc::InvalidArgument, "AdamW: state tensor " + name + "." + index +
                                                   " is missing or of another shape than its parameter: the state belongs to other parameters"};
        }
        auto copy = at::empty_like(param);
        copy.copy_(found->second);
        return copy;
      };
      m.exp_avg = take("exp_avg");
      m.exp_avg_sq = take("exp_avg_sq");
      m.step = static_cast<std::int64_t>(by_name.at("step." + index).item<double>());
      used += 3;
    }
  }
  if (used != by_name.size()) {
    throw Failure{Errc::InvalidArgument, "AdamW: " + std::to_string(by_name.size() - used) + " state tensors belong to no parameter; there are " +
                                             std::to_string(loaded.size()) + " parameters"};
  }
  impl_->moments = std::move(loaded);
}

}  // namespace troupe

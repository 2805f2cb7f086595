// Accumulation windows: when gradients are reduced, and what losses are divided by.
#include "accelerator_impl.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace troupe {

GradientAccumulationPlugin Accelerator::Impl::accumulation_of(const AcceleratorOptions& options) {
  GradientAccumulationPlugin plugin{.num_steps = options.gradient_accumulation_steps, .sync_with_dataloader = options.sync_with_dataloader};
  if (options.gradient_accumulation_plugin) {
    if (options.gradient_accumulation_steps != 1 || !options.sync_with_dataloader) {
      throw Failure{Errc::InvalidArgument,
                    "Accelerator: gradient_accumulation_plugin is given, and so is gradient_accumulation_steps or "
                    "sync_with_dataloader; say it in the plugin only"};
    }
    plugin = *options.gradient_accumulation_plugin;
  }
  if (plugin.num_steps < 1) {
    throw Failure{Errc::InvalidArgument,
                  "Accelerator: gradient accumulation over " + std::to_string(plugin.num_steps) + " steps, but it must be 1 or more"};
  }
  return plugin;
}

void Accelerator::Impl::forget_window() {
  *gate = {};
  window_steps = 0;
  divisor = 1;
  weights = {};
  window_start = {};
}

Accelerator::Impl::Model& Accelerator::Impl::prepared(const char* call, const torch::nn::Module* model) {
  const auto found = std::find_if(models.begin(), models.end(), [&](const auto& m) { return m.module.get() == model; });
  if (found == models.end()) throw Failure{Errc::InvalidArgument, std::string{call} + ": the model was not prepared; call prepare() first"};
  return *found;
}

void Accelerator::check_prepared(const char* call, const std::vector<const torch::nn::Module*>& models) const {
  for (const auto* model : models) (void)impl_->prepared(call, model);
}

Scope Accelerator::accumulate() {
  auto& i = *impl_;
  const int steps = i.accumulation.num_steps;
  if (i.gate->sync) {
    if (i.weights.count > 0) {
      throw Failure{Errc::InvalidArgument,
                    "accumulate: the last window ended with a backward without a weight, after others with one; give all or none"};
    }
    i.window_steps = 0;
    i.window_start.holds = std::exchange(i.window_start.is_noted, false);
  }
  ++i.window_steps;
  const bool last = i.accumulation.sync_with_dataloader && i.ending_loader();
  i.gate->sync = last || i.window_steps == steps;
  i.divisor = steps;
  const bool early = i.gate->sync && i.window_steps < steps;
  if (early && i.accumulation.tail_divisor == TailDivisor::OwnLength) {
    // Earlier batches were divided by the full length, unless weights will divide them.
    i.divisor = i.window_steps;
    if (i.window_steps > 1 && i.weights.count == 0) i.scale_gradients(static_cast<double>(steps) / i.window_steps);
  }
  return Scope{nullptr};
}

Scope Accelerator::no_sync(const std::vector<const torch::nn::Module*>& models) {
  auto* impl = impl_.get();
  if (models.empty()) {
    ++impl->no_sync_depth;
    return Scope{[impl] { --impl->no_sync_depth; }};
  }
  check_prepared("no_sync", models);
  const auto add = [impl, models](int change) {
    for (auto& model : impl->models) {
      if (std::count(models.begin(), models.end(), model.module.get())) model.no_sync_depth += change;
    }
  };
  add(1);
  return Scope{[add] { add(-1); }};
}

Scope Accelerator::trigger_sync(const torch::nn::Module* model) {
  ++impl_->prepared("trigger_sync_in_backward", model).trigger_depth;
  return Scope{[impl = impl_.get(), model] {
    for (auto& known : impl->models) {
      if (known.module.get() == model) --known.trigger_depth;
    }
  }};
}

std::vector<detail::DdpEngine*> Accelerator::Impl::engines_to_reduce() {
  std::vector<detail::DdpEngine*> engines;
  const bool window = (gate->sync || accumulation.sync_each_batch) && no_sync_depth == 0;
  for (auto& model : models) {
    if (!model.engine || local_depth > 0) continue;
    if (model.trigger_depth > 0 || (window && model.no_sync_depth == 0)) engines.push_back(model.engine.get());
  }
  return engines;
}

detail::Pass Accelerator::Impl::next_pass(std::size_t num_engines) {
  const bool several = num_engines > 1;
  if (!joining) return {.may_be_idle = several};
  const auto now = turnout ? *std::exchange(turnout, std::nullopt) : announce(true, 0);
  return {.buffer_root = now.first_active, .hold_back = several};
}

double Accelerator::Impl::total_weight() {
  if (joining) {
    turnout = announce(true, weights.sum);
    return turnout->weight;
  }
  double total = weights.sum;
  if (communicator.size() > 1) communicator.all_reduce({&total, sizeof total, DType::F64}, ReduceOp::Sum).wait().or_throw();
  return total;
}

void Accelerator::backward(const at::Tensor& loss, double weight) {
  auto& i = *impl_;
  if (!(weight >= 0) || !std::isfinite(weight)) {
    throw Failure{Errc::InvalidArgument, "backward: weight = " + std::to_string(weight) + " on rank " + std::to_string(process_index()) +
                                             ", but it must be 0 or more, and finite"};
  }
  if (i.window_steps > 0 && i.weights.count != i.window_steps - 1) {
    throw Failure{Errc::InvalidArgument, "backward: step " + std::to_string(i.window_steps) + " of an accumulation window has a weight after " +
                                             std::to_string(i.weights.count) + " steps with one; give one per accumulate(), or none at all"};
  }
  i.divisor = 1;
  i.weights.sum += weight;
  ++i.weights.count;
  if (!i.gate->sync || i.no_sync_depth > 0) return backward(loss * weight);

  // The sum is known before the last backward, so what goes over the wire is scaled already.
  const bool alone = i.local_depth > 0;
  const auto total = alone ? i.weights.sum : i.total_weight();
  if (!(total > 0)) throw Failure{Errc::InvalidArgument, "backward: all weights of the accumulation window are 0, on all ranks"};
  const auto factor = (alone ? 1 : num_processes()) / total;
  if (i.weights.count > 1) i.scale_gradients(factor);
  i.weights = {};
  backward(loss * (weight * factor));
}

}  // namespace troupe

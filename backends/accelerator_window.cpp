#include "accelerator_impl.hpp"
#include "gradients.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>

#include <algorithm>

namespace troupe {

ShardingOptions Accelerator::Impl::sharding() const {
  auto sharding = options.sharding;
  if (!sharding.param_dtype && options.mixed_precision != Precision::No) {
    sharding.param_dtype = options.mixed_precision == Precision::BF16 ? DType::BF16 : DType::F16;
  }
  return sharding;
}

void Accelerator::Impl::end_window() {
  gate->skip = false;
  if (options.mixed_precision != Precision::FP16) return;
  const at::NoGradGuard no_grad;
  std::uint8_t overflow = detail::unscale_(all_gradients(), scaler.scale());
  communicator.all_reduce({&overflow, 1, DType::U8}, ReduceOp::Max).wait().or_throw();
  gate->skip = overflow != 0;
  scaler.update(gate->skip);
}

void Accelerator::Impl::repoint(Optimizer& optimizer) {
  bool sharded = false;
  std::size_t i = 0;
  std::vector<std::vector<at::Tensor>> pieces;
  std::vector<detail::ShardEngine*> engines;
  for (const auto& group : optimizer.groups()) {
    auto& list = pieces.emplace_back();
    for (const auto& current : group.params) {
      const auto& handle = optimizer.handles()[i++];
      auto* shards = shards_of(handle);
      if (!current.is_same(handle) || !shards) {
        list.push_back(current);
        continue;
      }
      list.push_back(shards->piece_of(handle));
      sharded = true;
      if (std::find(engines.begin(), engines.end(), shards) == engines.end()) engines.push_back(shards);
    }
  }
  if (!sharded) return;
  optimizer.repoint(std::move(pieces));
  optimizer.set_after_step([engines] {
    for (auto* shards : engines) shards->after_step();
  });
}

detail::ShardEngine* Accelerator::Impl::shards_of(const at::Tensor& parameter) const {
  for (const auto& model : models) {
    if (model.shards && model.shards->piece_of(parameter).defined()) return model.shards.get();
  }
  return nullptr;
}

detail::ShardEngine* Accelerator::Impl::shards_of(const torch::nn::Module& module) const {
  for (const auto& model : models) {
    if (model.module.get() == &module) return model.shards.get();
  }
  return nullptr;
}

std::vector<at::Tensor> Accelerator::Impl::gradients_of(const std::vector<at::Tensor>& parameters) const {
  std::vector<at::Tensor> grads;
  for (const auto& parameter : parameters) {
    const auto* shards = shards_of(parameter);
    const auto& grad = shards ? shards->piece_of(parameter).grad() : parameter.grad();
    if (grad.defined() && grad.numel() > 0) grads.push_back(grad);
  }
  return grads;
}

std::vector<at::Tensor> Accelerator::Impl::all_gradients() const {
  std::vector<at::Tensor> grads;
  for (const auto& model : models) {
    auto mine = model.shards ? model.shards->gradients() : std::vector<at::Tensor>{};
    grads.insert(grads.end(), mine.begin(), mine.end());
    // Beside shards: parameters that are whole, and those of an open window that are not reduced yet.
    for (const auto& parameter : model.module->parameters()) {
      if (parameter.grad().defined()) grads.push_back(parameter.grad());
    }
  }
  return grads;
}

void Accelerator::Impl::scale_gradients(double factor) {
  const at::NoGradGuard no_grad;
  detail::scale_(all_gradients(), static_cast<float>(factor));
}

}  // namespace troupe

#include "accelerator_impl.hpp"
#include "gradients.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace troupe {

namespace {

/// Of gradients that are equal on all ranks each looks at a part.
template <class Impl>
bool gradients_finite(const Impl& i) {
  std::vector<at::Tensor> mine;
  for (const auto& model : i.models) {
    if (model.shards) {
      auto pieces = model.shards->gradients();
      mine.insert(mine.end(), pieces.begin(), pieces.end());
    }
    const auto parameters = model.module->parameters();
    const bool equal = model.engine && i.no_sync_depth == 0 && model.no_sync_depth == 0;
    std::int64_t total = 0, at = 0;
    for (const auto& parameter : parameters) total += parameter.numel();
    const auto first = total * i.communicator.rank() / i.communicator.size(), last = total * (i.communicator.rank() + 1) / i.communicator.size();
    for (const auto& parameter : parameters) {
      const auto begin = at, end = at += parameter.numel();
      const auto& grad = parameter.grad();
      if (!grad.defined()) continue;
      const auto from = std::max(begin, first), to = std::min(end, last);
      if (!equal) mine.push_back(grad);
      else if (from < to) mine.push_back(grad.is_contiguous() ? grad.view({-1}).narrow(0, from - begin, to - from) : grad);
    }
  }
  return detail::all_finite(mine);
}

}  // namespace

ShardingOptions Accelerator::Impl::sharding() const {
  auto sharding = options.sharding;
  if (!sharding.param_dtype && options.mixed_precision != Precision::No) {
    sharding.param_dtype = options.mixed_precision == Precision::BF16 ? DType::BF16 : DType::F16;
  }
  return sharding;
}

void Accelerator::Impl::end_window() {
  gate->skip = false;
  const at::NoGradGuard no_grad;
  const bool looks = looks_at_numbers(), fp16 = options.mixed_precision == Precision::FP16;
  const bool clips = config && config->gradient_clipping > 0;
  auto found = looks && numbers.bad_loss ? BadLoss : Nothing;
  if (fp16) found = agree_on_overflow(std::max(found, detail::unscale_(all_gradients(), scaler.scale()) ? BadGradient : Nothing));
  if (clips) clip_all();
  if (!looks) return;
  if (!fp16) {
    const bool finite = clips ? std::isfinite(last_norm) : gradients_finite(*this);
    found = std::max(found, finite ? Nothing : BadGradient);
    if (communicator.size() > 1) communicator.all_reduce({&found, 1, DType::U8}, ReduceOp::Max).wait().or_throw();
  } else if (found == BadGradient) {
    found = Nothing;  // what the loss scale is for
  }
  act_on(found);
}

void Accelerator::Impl::clip_all() {
  std::vector<at::Tensor> parameters;
  for (const auto& model : models) {
    for (const auto& parameter : model.module->parameters()) {
      if (parameter.requires_grad()) parameters.push_back(parameter);
    }
  }
  last_norm = clip(parameters, config->gradient_clipping);
}

double Accelerator::Impl::clip(const std::vector<at::Tensor>& parameters, double max_norm) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> replicated;
  std::vector<std::pair<detail::ShardEngine*, std::vector<at::Tensor>>> sharded;  // in prepare's order, as on every rank
  for (const auto& model : models) {
    if (model.shards) sharded.emplace_back(model.shards.get(), std::vector<at::Tensor>{});
  }
  for (const auto& parameter : parameters) {
    if (auto* shards = shards_of(parameter)) {
      const auto& grad = shards->piece_of(parameter).grad();
      const auto mine = std::find_if(sharded.begin(), sharded.end(), [&](const auto& entry) { return entry.first == shards; });
      if (grad.defined() && grad.numel() > 0) mine->second.push_back(grad);
    } else if (parameter.grad().defined()) {
      replicated.push_back(parameter.grad());
    }
  }
  double squares = detail::sum_of_squares(replicated);
  for (auto& [shards, grads] : sharded) squares += shards->sum_over_group(detail::sum_of_squares(grads));
  const auto norm = std::sqrt(squares);
  const auto factor = max_norm / (norm + 1e-6);  // as torch.nn.utils.clip_grad_norm_
  if (factor >= 1) return norm;                  // not when it is not a number
  detail::scale_(replicated, static_cast<float>(factor));
  for (auto& [shards, grads] : sharded) detail::scale_(grads, static_cast<float>(factor));
  return norm;
}

Accelerator::Impl::Found Accelerator::Impl::agree_on_overflow(Found found) {
  communicator.all_reduce({&found, 1, DType::U8}, ReduceOp::Max).wait().or_throw();
  gate->skip = found != Nothing;
  if (found != BadLoss) scaler.update(gate->skip);
  return found;
}

void Accelerator::Impl::name_parameters(Optimizer& optimizer) {
  std::map<const void*, std::string> names;
  for (std::size_t m = 0; m < models.size(); ++m) {
    const auto prefix = m ? "model_" + std::to_string(m) + "." : std::string{};
    for (const auto& item : models[m].module->named_parameters()) names.try_emplace(item.value().unsafeGetTensorImpl(), prefix + item.key());
  }
  std::vector<std::string> mine;
  for (const auto& handle : optimizer.handles()) {
    const auto found = names.find(handle.unsafeGetTensorImpl());
    if (found == names.end()) return;  // of a model that is not prepared (yet)
    mine.push_back(found->second);
  }
  optimizer.set_names(std::move(mine));
}

void Accelerator::Impl::repoint(Optimizer& optimizer) {
  std::set<const detail::ShardEngine*> used;
  std::size_t i = 0;
  std::vector<std::vector<at::Tensor>> pieces;
  std::vector<std::weak_ptr<detail::ShardEngine>> engines;  // an optimizer may outlive them
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
      used.insert(shards);
    }
  }
  if (used.empty()) return;
  optimizer.repoint(std::move(pieces));
  std::vector<std::shared_ptr<detail::Residence>> residences;
  for (const auto& handle : optimizer.handles()) {
    const auto* shards = shards_of(handle);
    residences.push_back(shards ? shards->residence_of(handle) : nullptr);
  }
  optimizer.set_residences(std::move(residences));
  if (const auto& offload = sharding().offload_optimizer; offload.place != Offload::Place::None) optimizer.set_offload(offload, communicator.rank());
  for (const auto& model : models) {
    if (used.contains(model.shards.get())) engines.push_back(model.shards);
  }
  optimizer.set_after_step([engines] {
    for (const auto& shards : engines) {
      if (const auto alive = shards.lock()) alive->after_step();
    }
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

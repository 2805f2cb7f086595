#include "accelerator_impl.hpp"
#include "c10d/tensor_buffer.hpp"

#include <troupe/errors.hpp>
#include <troupe/local_sgd.hpp>
#include <troupe/memory_estimate.hpp>

#include <ATen/core/grad_mode.h>

#include <exception>

namespace troupe {

LocalSGD::LocalSGD(Accelerator& accelerator, const torch::nn::Module* model, int local_sgd_steps, bool enabled)
    : accelerator_(accelerator),
      model_(model),
      steps_(local_sgd_steps),
      enabled_(enabled && accelerator.num_processes() > 1),
      exceptions_(std::uncaught_exceptions()) {
  if (local_sgd_steps < 1) {
    throw Failure{Errc::InvalidArgument, "LocalSGD: local_sgd_steps = " + std::to_string(local_sgd_steps) + ", but it must be 1 or more"};
  }
  auto& impl = *accelerator.impl_;
  const auto& prepared = impl.prepared("LocalSGD", model);
  if (!enabled_) return;
  if (prepared.shards) {
    throw Failure{Errc::Unsupported, std::string{"LocalSGD: the model is sharded ("} + short_name(prepared.shards->options().strategy) +
                                         "), and a rank cannot train pieces alone; use ShardingStrategy::Replicate"};
  }
  if (!prepared.engine) throw Failure{Errc::Unsupported, "LocalSGD: no parameter of the model is trained"};
  if (impl.joining) throw Failure{Errc::Unsupported, "LocalSGD: not inside join_uneven_inputs: ranks must make equal numbers of steps"};
  ++impl.local_depth;
  impl.replicas_differ = true;  // optimizer state stays local even after averaging
}

LocalSGD::~LocalSGD() {
  if (!enabled_) return;
  --accelerator_.impl_->local_depth;
  if (std::uncaught_exceptions() > exceptions_) return;
  try {
    average();
  } catch (const std::exception&) {  // the group is broken, and says so to the next caller
  }
}

void LocalSGD::step() {
  if (!accelerator_.sync_gradients()) return;  // no update was made
  if (++num_steps_ % steps_ == 0 && enabled_) average();
}

void LocalSGD::average() {
  const at::NoGradGuard no_grad;
  struct Part {
    at::Tensor parameter, dense;
    Work work;  // last: waits while the memory lives
  };
  std::vector<Part> parts;
  for (const auto& parameter : model_->parameters()) {
    auto dense = parameter.detach().contiguous();
    auto work = accelerator_.impl_->carrier(dense).all_reduce(buffer_of(dense), ReduceOp::Mean);
    parts.push_back({parameter, std::move(dense), std::move(work)});
  }
  for (auto& part : parts) {
    part.work.wait().or_throw();
    if (part.dense.data_ptr() != part.parameter.data_ptr()) part.parameter.copy_(part.dense);
  }
}

}  // namespace troupe

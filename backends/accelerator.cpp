#include "accelerator_impl.hpp"

#include <troupe/errors.hpp>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <iostream>

namespace troupe {

namespace {

/// Sets the intra-op threads of the calling thread. The flag "already initialised", which a thread's first parallel
/// operation would reset the number by, exists once in LibTorch and once in every binary: touch both first.
void set_intra_op_threads(int threads) {
  (void)at::get_num_threads();
  at::internal::lazy_init_num_threads();
  at::set_num_threads(threads);
}

void check(const AcceleratorOptions& options) {
  if (options.gradient_accumulation_steps < 1) {
    throw Failure{Errc::InvalidArgument, "Accelerator: gradient_accumulation_steps = " +
                                             std::to_string(options.gradient_accumulation_steps) + ", but it must be 1 or more"};
  }
  if (!(options.ddp.bucket_cap_mb > 0)) {
    throw Failure{Errc::InvalidArgument, "Accelerator: ddp.bucket_cap_mb = " + std::to_string(options.ddp.bucket_cap_mb) +
                                             ", but it must be more than 0"};
  }
  detail::check_comm_hook(options.ddp);
}

template <class T>
void add_once(std::vector<T*>& list, T& object) {
  if (std::find(list.begin(), list.end(), &object) == list.end()) list.push_back(&object);
}

template <class Items>
detail::NamedTensors named(const Items& items) {
  detail::NamedTensors result;
  std::vector<const void*> seen;  // tied tensors appear under several names
  for (const auto& item : items) {
    const void* impl = item.value().unsafeGetTensorImpl();
    if (std::find(seen.begin(), seen.end(), impl) != seen.end()) continue;
    seen.push_back(impl);
    result.emplace_back(item.key(), item.value());
  }
  return result;
}

}  // namespace

Precision precision_from(const std::string& name) {
  if (name == "no") return Precision::No;
  if (name == "bf16") return Precision::BF16;
  throw Failure{Errc::InvalidConfig, "mixed_precision = \"" + name + "\", but it must be \"no\" or \"bf16\""};
}

Accelerator::Accelerator(TrainContext& context, AcceleratorOptions options) {
  check(options);
  if (context.device().kind != Device::Kind::Cpu) {
    throw Failure{Errc::Unsupported, "Accelerator: rank " + std::to_string(context.world_rank()) + " was given a GPU, but only CPUs are supported yet"};
  }
  set_intra_op_threads(std::max(1, context.scaling().cpus_per_worker));
  impl_ = std::make_unique<Impl>(context, std::move(options));
}

Accelerator::~Accelerator() {
  for (auto* optimizer : impl_->optimizers) optimizer->set_gate(nullptr);
}

void Accelerator::prepare_model(std::shared_ptr<torch::nn::Module> model) {
  for (const auto& known : impl_->models) {
    if (known.module == model) return;
  }
  impl_->models.push_back({model, nullptr});
  impl_->added.push_back(std::move(model));
}

void Accelerator::prepare_optimizer(Optimizer& optimizer) {
  optimizer.set_gate(impl_->sync_gradients);
  add_once(impl_->optimizers, optimizer);
}

void Accelerator::prepare_scheduler(LRScheduler& scheduler) { add_once(impl_->schedulers, scheduler); }

void Accelerator::finish_prepare() {
  const auto added = std::exchange(impl_->added, {});
  if (impl_->communicator.size() == 1) return;
  for (auto& model : impl_->models) {
    if (std::find(added.begin(), added.end(), model.module) == added.end()) continue;
    auto params = named(model.module->named_parameters());
    if (std::none_of(params.begin(), params.end(), [](const auto& p) { return p.second.requires_grad(); })) continue;
    model.engine = std::make_unique<detail::DdpEngine>(impl_->communicator, std::move(params), named(model.module->named_buffers()),
                                                       impl_->options.ddp);
  }
}

Scope Accelerator::autocast() {
  if (impl_->options.mixed_precision == Precision::No) return Scope{nullptr};
  const bool enabled = at::autocast::is_autocast_enabled(at::kCPU);
  const auto dtype = at::autocast::get_autocast_dtype(at::kCPU);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::increment_nesting();
  return Scope{[enabled, dtype] {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, enabled);
    at::autocast::set_autocast_dtype(at::kCPU, dtype);
  }};
}

void Accelerator::backward(const at::Tensor& loss) {
  auto& i = *impl_;
  const auto scaled = i.divisor == 1 ? loss : loss / i.divisor;
  const auto engines = i.engines_to_reduce();
  if (engines.empty()) return scaled.backward();
  const auto pass = i.next_pass(engines.size());
  try {
    for (auto* engine : engines) engine->begin(pass);
    scaled.backward();
    for (auto* engine : engines) engine->finish();
  } catch (...) {
    for (auto* engine : engines) engine->cancel();
    throw;
  }
}

double Accelerator::clip_grad_norm(const std::vector<at::Tensor>& parameters, double max_norm) {
  if (!*impl_->sync_gradients) return 0;
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> grads;
  for (const auto& parameter : parameters) {
    if (parameter.grad().defined()) grads.push_back(parameter.grad());
  }
  if (grads.empty()) return 0;
  const auto norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2))).item<double>();
  const auto factor = max_norm / (norm + 1e-6);  // as torch.nn.utils.clip_grad_norm_
  if (!(factor >= 1)) at::_foreach_mul_(grads, factor);  // also when it is not a number
  return norm;
}

bool Accelerator::sync_gradients() const noexcept { return *impl_->sync_gradients; }

void Accelerator::print(const std::string& line) const {
  if (is_main_process()) std::cout << line << std::endl;
}

bool Accelerator::is_main_process() const noexcept { return process_index() == 0; }
bool Accelerator::is_last_process() const noexcept { return process_index() == num_processes() - 1; }
int Accelerator::process_index() const noexcept { return impl_->communicator.rank(); }
int Accelerator::num_processes() const noexcept { return impl_->communicator.size(); }

std::shared_ptr<torch::nn::Module> Accelerator::unwrap_model(std::shared_ptr<torch::nn::Module> model) const { return model; }

void Accelerator::Impl::scale_gradients(double factor) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> grads;
  for (const auto& model : models) {
    for (const auto& parameter : model.module->parameters()) {
      if (parameter.grad().defined()) grads.push_back(parameter.grad());
    }
  }
  if (!grads.empty()) at::_foreach_mul_(grads, factor);
}

}  // namespace troupe

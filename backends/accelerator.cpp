#include "accelerator_impl.hpp"
#include "c10d/tensor_buffer.hpp"
#include "gradients.hpp"

#include <troupe/black_box.hpp>
#include <troupe/errors.hpp>
#include <troupe/parameter_source.hpp>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <iostream>
#include <limits>

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

/// What has memory yet: the engine reads the rest to where it belongs.
void move_to(at::Device device, torch::nn::Module& module) {
  const auto move = [device](at::Tensor tensor) {
    if (!is_deferred(tensor)) tensor.set_data(tensor.to(device));
  };
  for (const auto& parameter : module.parameters()) move(parameter);
  for (const auto& buffer : module.buffers()) move(buffer);
}

}  // namespace

Precision precision_from(const std::string& name) {
  if (name == "no") return Precision::No;
  if (name == "bf16") return Precision::BF16;
  if (name == "fp16") return Precision::FP16;
  throw Failure{Errc::InvalidConfig, "mixed_precision = \"" + name + "\", but it must be \"no\", \"bf16\" or \"fp16\""};
}

Accelerator::Accelerator(TrainContext& context, AcceleratorOptions options) {
  check(options);
  set_intra_op_threads(std::max(1, context.scaling().cpus_per_worker));
  impl_ = std::make_unique<Impl>(context, std::move(options));
  impl_->configure(/*partial=*/true);
  impl_->adopt_context_streams();
}

Accelerator::~Accelerator() {
  impl_->self.reset();
  impl_->saver.reset();  // waits for a save under way
  // What was prepared may be gone already: it is declared after the Accelerator in most loops. Optimizers that are still
  // there find an open gate.
  *impl_->gate = {};
}

void Accelerator::prepare_model(std::shared_ptr<torch::nn::Module> model) {
  for (const auto& known : impl_->models) {
    if (known.module == model) return;
  }
  impl_->models.push_back({model, nullptr, nullptr});
  impl_->added.push_back(std::move(model));
}

void Accelerator::prepare_optimizer(Optimizer& optimizer) {
  optimizer.set_gate(impl_->gate);
  add_once(impl_->optimizers, optimizer);
}

void Accelerator::prepare_scheduler(LRScheduler& scheduler) {
  if (impl_->options.compat.step_scheduler_per_process) scheduler.set_steps_per_update(num_processes());
  add_once(impl_->schedulers, scheduler);
}

void Accelerator::finish_prepare() {
  auto& i = *impl_;
  const auto added = std::exchange(i.added, {});
  if (!added.empty()) i.configure(/*partial=*/false);
  for (auto& model : i.models) {
    if (std::find(added.begin(), added.end(), model.module) == added.end()) continue;
    const auto sharding = i.sharding();
    if (sharding.strategy == ShardingStrategy::Replicate) materialize(*model.module);
    if (const auto device = torch_device(i.context.device()); !device.is_cpu()) move_to(device, *model.module);
    auto params = named(model.module->named_parameters());
    const bool trained = std::any_of(params.begin(), params.end(), [](const auto& p) { return p.second.requires_grad(); });
    if (sharding.strategy == ShardingStrategy::Replicate &&
        (sharding.offload_optimizer.place != Offload::Place::None || sharding.offload_params.place != Offload::Place::None)) {
      throw Failure{Errc::InvalidConfig, "prepare: offload_optimizer and offload_params need a strategy that shards, even on one rank; Replicate does not"};
    }
    if (sharding.strategy != ShardingStrategy::Replicate) {
      model.shards = std::make_shared<detail::ShardEngine>(i.communicator, model.module, sharding, i.memory,
                                                           detail::RankDevice{&i.context.device_runtime(), &i.context.device_communicator()});
    } else if (trained && i.communicator.size() > 1) {
      if (i.context.device().kind != Device::Kind::Cpu) {
        throw Failure{Errc::Unsupported, "prepare: replicated training moves host memory only, but rank " + std::to_string(process_index()) +
                                             " has a GPU; set sharding.strategy = ShardOptimizer, which sends as much"};
      }
      model.engine = std::make_unique<detail::DdpEngine>(i.communicator, std::move(params), named(model.module->named_buffers()), i.options.ddp);
    }
    if (model.engine) {
      for (const auto& parameter : model.module->parameters()) i.equal.insert(parameter.unsafeGetTensorImpl());
    }
    Impl::note_buffers(model);
  }
  for (auto* optimizer : i.optimizers) {
    i.name_parameters(*optimizer);
    i.repoint(*optimizer);
  }
  i.reserve_for_saves();
}

Scope Accelerator::autocast() {
  if (impl_->options.mixed_precision == Precision::No) return Scope{nullptr};
  const auto device = torch_device(impl_->context.device()).type();
  const bool enabled = at::autocast::is_autocast_enabled(device);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  at::autocast::set_autocast_enabled(device, true);
  at::autocast::set_autocast_dtype(device, impl_->options.mixed_precision == Precision::FP16 ? at::kHalf : at::kBFloat16);
  at::autocast::increment_nesting();
  return Scope{[device, enabled, dtype] {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
  }};
}

void Accelerator::backward(const at::Tensor& given) {
  auto& i = *impl_;
  mark_phase(StepPhase::Backward);
  // An injected fault, if so.
  const auto loss = i.context.wants_bad_number() ? given * std::numeric_limits<double>::quiet_NaN() : given;
  i.note_loss(loss);
  const auto scale = i.scaler.scale();
  const auto scaled = scale != 1 ? loss * (scale / i.divisor) : i.divisor != 1 ? loss / i.divisor : loss;
  const auto engines = i.engines_to_reduce();
  const auto pass = engines.empty() ? detail::Pass{} : i.next_pass(engines.size());
  try {
    for (auto* engine : engines) engine->begin(pass);
    for (auto& model : i.models) {
      if (model.shards) model.shards->begin(i.gate->sync && i.no_sync_depth == 0 && model.no_sync_depth == 0);
    }
    scaled.backward();
    for (auto* engine : engines) engine->finish();
    for (auto& model : i.models) {
      if (model.shards) model.shards->finish();
    }
  } catch (...) {
    for (auto* engine : engines) engine->cancel();
    for (auto& model : i.models) {
      if (model.shards) model.shards->cancel();
    }
    throw;
  }
  mark_phase(StepPhase::Update);
  if (!i.gate->sync) return;
  i.end_window();
  i.window_ended();
}

double Accelerator::clip_grad_norm(const std::vector<at::Tensor>& parameters, double max_norm) {
  if (!impl_->gate->sync) return 0;
  if (impl_->config && impl_->config->gradient_clipping > 0) return impl_->last_norm;
  return impl_->clip(parameters, max_norm);
}

void Accelerator::clip_grad_value(const std::vector<at::Tensor>& parameters, double clip_value) {
  if (!(clip_value >= 0)) throw Failure{Errc::InvalidArgument, "clip_grad_value: clip_value = " + std::to_string(clip_value) + ", but it must be 0 or more"};
  if (!impl_->gate->sync) return;
  const at::NoGradGuard no_grad;
  detail::clamp_(impl_->gradients_of(parameters), static_cast<float>(clip_value));
}

bool Accelerator::optimizer_step_was_skipped() const noexcept { return impl_->gate->skip; }
double Accelerator::loss_scale() const noexcept { return impl_->scaler.scale(); }

bool Accelerator::sync_gradients() const noexcept { return impl_->gate->sync; }

void Accelerator::print(const std::string& line) const {
  if (is_main_process()) std::cout << line << std::endl;
}

bool Accelerator::is_main_process() const noexcept { return process_index() == 0; }
bool Accelerator::is_last_process() const noexcept { return process_index() == num_processes() - 1; }
int Accelerator::process_index() const noexcept { return impl_->communicator.rank(); }
int Accelerator::num_processes() const noexcept { return impl_->communicator.size(); }

std::shared_ptr<torch::nn::Module> Accelerator::unwrap_model(std::shared_ptr<torch::nn::Module> model) const { return model; }

}  // namespace troupe

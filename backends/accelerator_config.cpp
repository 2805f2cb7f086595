// What a DeepSpeed or FSDP plugin says about training.
#include "accelerator_impl.hpp"

#include <troupe/errors.hpp>

#include <iostream>

namespace troupe {

namespace {

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::No: return "no";
    case Precision::BF16: return "bf16";
    case Precision::FP16: return "fp16";
  }
  return "";
}

}  // namespace

ConfigFacts Accelerator::Impl::facts() const {
  ConfigFacts facts;
  facts.num_processes = communicator.size();
  facts.hidden_sizes = options.hidden_sizes;
  facts.gradient_accumulation_steps = accumulation.num_steps;
  if (options.mixed_precision != Precision::No) facts.mixed_precision = name_of(options.mixed_precision);
  for (const auto& loader : loaders) {
    if (const auto size = loader.loader->options().batch_size) facts.batch_sizes.push_back(*size);
  }
  facts.split_batches = options.dataloader.split_batches;
  if (!optimizers.empty()) {
    facts.lr = optimizers.front()->base_lrs().front();
    facts.weight_decay = optimizers.front()->groups().front().weight_decay;
  }
  return facts;
}

void Accelerator::Impl::configure(bool partial) {
  if (config_settled) return;
  const int plugins = (options.deepspeed_plugin ? 1 : 0) + (options.fsdp_plugin ? 1 : 0) + (options.config ? 1 : 0);
  if (plugins == 0) return;
  if (plugins > 1) throw Failure{Errc::InvalidConfig, "Accelerator: of deepspeed_plugin, fsdp_plugin and config only one can be given"};
  auto known = facts();
  known.partial = partial;
  if (options.config) {
    config = options.config;
  } else {
    config = options.deepspeed_plugin ? options.deepspeed_plugin->resolve(known) : options.fsdp_plugin->resolve(known);
  }
  options.sharding = config->sharding;
  options.sharding.debug = options.sharding.debug || config->debug;
  options.mixed_precision = precision_from(config->mixed_precision);
  if (config->loss_scale) options.loss_scale = *config->loss_scale;
  scaler = LossScaler{options.mixed_precision == Precision::FP16 ? options.loss_scale : LossScale{.dynamic = false, .initial = 1}};
  accumulation.num_steps = config->gradient_accumulation_steps;
  if (partial) return;
  config_settled = true;
  if (communicator.rank() == 0) std::cerr << to_text(*config);
}

const std::optional<EffectiveConfig>& Accelerator::config() const noexcept { return impl_->config; }

const MemoryAccount& Accelerator::memory() {
  std::int64_t parameters = 0, gradients = 0;  // of replicated models; sharded ones keep their own account
  for (const auto& model : impl_->models) {
    if (model.shards) continue;
    for (const auto& parameter : model.module->parameters()) {
      const auto size = parameter.numel() * static_cast<std::int64_t>(parameter.element_size());
      parameters += size;
      if (parameter.grad().defined()) gradients += size;
    }
  }
  const bool on_disk = impl_->options.sharding.offload_optimizer.place == Offload::Place::Disk;
  std::int64_t bytes = 0;
  for (const auto* optimizer : impl_->optimizers) {
    if (on_disk) break;
    for (const auto& [name, tensor] : optimizer->state()) bytes += tensor.dim() ? tensor.numel() * static_cast<std::int64_t>(tensor.element_size()) : 0;
  }
  const auto set = [this](MemoryAccount::Charge& charge, MemoryCategory category, std::int64_t n) {
    charge = {};
    charge = impl_->memory.charge(category, n, MemoryAccount::Source::Elsewhere);
  };
  set(impl_->optimizer_charge, MemoryCategory::Optimizer, bytes);
  set(impl_->parameters_charge, MemoryCategory::Parameters, parameters);
  set(impl_->gradients_charge, MemoryCategory::Gradients, gradients);
  return impl_->memory;
}

std::string Accelerator::memory_report() {
  MemoryBytes estimate;
  for (const auto& model : impl_->models) {
    ModelSize size;
    if (model.shards) {
      size = model.shards->size();
    } else {
      for (const auto& p : model.module->parameters()) (p.requires_grad() ? size.num_params : size.num_frozen) += p.numel();
    }
    const auto bytes = estimate_memory(size, model.shards ? model.shards->options() : ShardingOptions{}, num_processes());
    estimate[MemoryCategory::Parameters] += bytes.params;
    estimate[MemoryCategory::Gradients] += bytes.grads;
    estimate[MemoryCategory::Optimizer] += bytes.optimizer;
    estimate[MemoryCategory::Gathered] += bytes.gathered;
  }
  return compare_memory(estimate, memory());
}

}  // namespace troupe

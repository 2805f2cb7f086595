#include <troupe/effective_config.hpp>
#include <troupe/memory_estimate.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

namespace troupe {

namespace {

std::string text(double value) {
  std::array<char, 32> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  return {digits.data(), end};
}
std::string text(bool value) { return value ? "true" : "false"; }
std::string text(std::int64_t value) { return std::to_string(value); }

template <class T>
std::string text(const std::optional<T>& value, const char* none) {
  return value ? text(*value) : none;
}

std::string text(const std::optional<DType>& dtype, const char* none) { return dtype ? std::string{name(*dtype)} : none; }

std::string text(const WrapPolicy& wrap) {
  switch (wrap.kind) {
    case WrapPolicy::Kind::Units: return "modules called through TROUPE_UNIT";
    case WrapPolicy::Kind::BySize: return "modules of at least " + text(wrap.min_num_params) + " parameters";
    case WrapPolicy::Kind::NoWrap: return "the whole model";
    case WrapPolicy::Kind::ByClass: break;
  }
  std::string classes = "classes";
  for (const auto& name : wrap.classes) classes += " " + name;
  return classes;
}

std::string text(const Offload& offload) {
  if (offload.place == Offload::Place::None) return "none";
  const auto chunks = ", " + std::to_string(offload.num_buffers) + " chunks of " + text(offload.chunk_bytes) + " bytes";
  if (offload.place == Offload::Place::Disk) return "disk " + offload.path.string() + chunks;
  return std::string{"host memory"} + (offload.pin_memory ? ", pinned" : "") + chunks;
}

std::string text(const LossScale& s) {
  if (!s.dynamic) return "constant " + text(s.initial);
  const bool deepspeed = s.policy == LossScale::Policy::DeepSpeed;
  std::string line = std::string{deepspeed ? "DeepSpeed" : "GradScaler"} + ": " + text(s.initial) + ", x" + text(s.growth_factor) +
                     " after " + text(s.growth_interval) + " good steps, x" + text(s.backoff_factor) + " on overflow";
  if (deepspeed) {
    line += " number " + text(std::int64_t{s.hysteresis}) + (s.consecutive_hysteresis ? " in a row" : "") + ", at least " + text(s.minimum);
  }
  return line;
}

std::string text(const OptimizerConfig& o) {
  std::string line = o.type + ": lr " + text(o.lr, "not known yet");
  if (o.type == "AdamW" || o.type == "Adam" || o.type == "Lion") line += ", betas " + text(o.beta1) + " " + text(o.beta2);
  if (o.type == "SGD") line += ", momentum " + text(o.momentum) + (o.nesterov ? ", nesterov" : "");
  if (o.type == "Adagrad") line += ", lr_decay " + text(o.lr_decay);
  if (o.type != "SGD" && o.type != "Lion") line += ", eps " + text(o.eps);
  return line + ", weight_decay " + text(o.weight_decay);
}

std::string text(const LRScheduleConfig& s) {
  const std::string warmup = text(s.warmup_num_steps) + (s.warmup_log ? " steps, logarithmic" : " steps, linear");
  if (s.type == "WarmupLR" || s.type == "WarmupDecayLR") {
    return s.type + ": " + text(s.warmup_min_lr) + " to " + text(s.warmup_max_lr, s.type == "WarmupLR" ? "the optimizer's lr" : "0.001") +
           " over " + warmup + (s.type == "WarmupDecayLR" ? ", 0 at " + text(s.total_num_steps) : "");
  }
  if (s.type == "WarmupCosineLR") {
    return s.type + ": " + text(s.warmup_min_ratio) + " to 1 of lr over " + warmup + ", " + text(s.cos_min_ratio) + " at " +
           text(s.total_num_steps);
  }
  if (s.type == "OneCycle") {
    return s.type + ": " + text(s.cycle_min_lr) + " to " + text(s.cycle_max_lr) + " in " + text(s.cycle_first_step_size) +
           ", back in " + text(s.cycle_second_step_size.value_or(s.cycle_first_step_size)) + ", then decay " + text(s.decay_lr_rate) +
           " every " + text(s.decay_step_size);
  }
  return s.type + ": " + text(s.lr_range_test_min_lr) + ", + " + text(s.lr_range_test_step_rate) + " of it every " +
         text(s.lr_range_test_step_size) + (s.lr_range_test_staircase ? " in stairs" : "");
}

std::string text(const StateDictConfig& c) {
  return std::string{c.rank0_only ? "complete on rank 0" : "complete on every rank"} + (c.offload_to_cpu ? ", in host memory" : ", on its device");
}

constexpr const char* strategy_names[] = {"replicate (DDP, ZeRO-0, NO_SHARD)", "shard optimizer state (ZeRO-1)",
                                          "shard gradients and optimizer state (ZeRO-2)",
                                          "shard parameters, gradients and optimizer state (ZeRO-3, FULL_SHARD)"};

class Rows {
 public:
  explicit Rows(const EffectiveConfig& config) : config_(config) {}
  void add(const std::string& name, const std::string& value) {
    const auto found = config_.sources.find(name);
    rows_.push_back({name, value, found == config_.sources.end() ? "default" : found->second});
  }
  [[nodiscard]] std::vector<ConfigRow> take() { return std::move(rows_); }

 private:
  const EffectiveConfig& config_;
  std::vector<ConfigRow> rows_;
};

void add_sharding(Rows& rows, const ShardingOptions& s) {
  rows.add("strategy", strategy_names[static_cast<std::size_t>(s.strategy)]);
  const bool sharded = s.strategy != ShardingStrategy::Replicate;
  if (sharded) rows.add("shard_group_size", s.shard_group_size == 0 ? "all ranks" : std::to_string(s.shard_group_size));
  if (s.strategy == ShardingStrategy::ShardParameters) {
    rows.add("reshard_after_forward", text(s.reshard_after_forward));
    rows.add("wrap", text(s.wrap));
    rows.add("persistence_threshold", text(s.persistence_threshold));
    rows.add("forward_prefetch", text(s.forward_prefetch));
    rows.add("backward_prefetch", text(s.backward_prefetch));
  }
  rows.add("reduce_bucket_elements", text(s.reduce_bucket_elements));
  rows.add("param_dtype", text(s.param_dtype, "as the model"));
  rows.add("reduce_dtype", text(s.reduce_dtype, "F32"));
  rows.add("buffer_dtype", text(s.buffer_dtype, "as the model"));
  if (sharded) {
    rows.add("offload_optimizer", text(s.offload_optimizer));
    rows.add("offload_params", text(s.offload_params));
  }
  rows.add("activation_checkpointing",
           s.activation_checkpointing ? (s.activation_checkpointing_offload ? "true, offloaded to host memory" : "true") : "false");
}

}  // namespace

std::vector<ConfigRow> rows(const EffectiveConfig& c) {
  Rows rows{c};
  rows.add("num_processes", c.num_processes ? std::to_string(*c.num_processes) : "not given");
  add_sharding(rows, c.sharding);
  rows.add("mixed_precision", c.mixed_precision);
  if (c.loss_scale) rows.add("loss_scale", text(*c.loss_scale));
  rows.add("gradient_clipping", c.gradient_clipping == 0 ? "none" : text(c.gradient_clipping));
  rows.add("gradient_accumulation_steps", std::to_string(c.gradient_accumulation_steps));
  rows.add("train_micro_batch_size_per_gpu", text(c.train_micro_batch_size_per_gpu, "the loader's"));
  rows.add("train_batch_size", text(c.train_batch_size, "what the above give"));
  rows.add("optimizer", c.optimizer ? text(*c.optimizer) : "the program's");
  rows.add("scheduler", c.scheduler ? text(*c.scheduler) : "the program's");
  if (c.steps_per_print) rows.add("steps_per_print", text(*c.steps_per_print));
  rows.add("state_dict_type", c.state_dict_type);
  if (c.state_dict_type == "FULL_STATE_DICT") {
    rows.add("state_dict_config", text(c.state_dict_config));
    rows.add("optim_state_dict_config", text(c.optim_state_dict_config));
  }
  if (c.gather_16bit_weights_on_model_save) rows.add("gather_16bit_weights_on_model_save", "true");
  if (c.debug) rows.add("debug", "true");
  return rows.take();
}

std::string to_text(const EffectiveConfig& config) {
  const auto lines = rows(config);
  std::size_t names = 0;
  std::size_t values = 0;
  for (const auto& row : lines) {
    names = std::max(names, row.name.size());
    values = std::max(values, std::min<std::size_t>(row.value.size(), 72));
  }
  std::string table;
  const auto padded = [](std::string cell, std::size_t width) {
    cell.resize(std::max(width, cell.size()), ' ');
    return cell;
  };
  for (const auto& row : lines) table += padded(row.name, names) + "  " + padded(row.value, values) + "  " + row.source + "\n";
  for (const auto& note : config.notes) table += "note: " + note + "\n";
  for (const auto& open : config.unresolved) table += "not known yet: " + open + "\n";
  return table;
}

nlohmann::ordered_json to_json(const EffectiveConfig& config) {
  auto values = nlohmann::ordered_json::object();
  for (const auto& row : rows(config)) values[row.name] = {{"value", row.value}, {"source", row.source}};
  return {{"values", values}, {"notes", config.notes}, {"unresolved", config.unresolved}};
}

}  // namespace troupe

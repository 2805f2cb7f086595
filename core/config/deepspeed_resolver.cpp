#include "deepspeed_resolver.hpp"

#include "deepspeed_keys.hpp"
#include "precision.hpp"

#include <algorithm>
#include <cmath>

namespace troupe::detail {

namespace {

constexpr std::int64_t max_batch = 2'147'483'647;  // times 10^6 steps times 4096 ranks still fits

}  // namespace

EffectiveConfig DeepSpeedResolver::resolve() {
  out_.num_processes = facts_.num_processes;
  if (facts_.num_processes) out_.sources["num_processes"] = "argument";
  out_.sharding.forward_prefetch = true;
  stage();
  precision();
  types();
  buckets();
  stage3();
  offload();
  clipping();
  batches();
  optimizer();
  scheduler();
  out_.steps_per_print = root_.integer("steps_per_print", 1);
  if (out_.steps_per_print) from("steps_per_print", root_, "steps_per_print");
  check_deepspeed_read(document_, read_);
  return std::move(out_);
}

void DeepSpeedResolver::missing(const Section& section, const std::string& key, const std::string& what) {
  if (!facts_.partial) section.fail(key, "is \"auto\", which needs " + what + "; give that, or write a value");
  out_.unresolved.push_back(section.origin(key) + " is \"auto\" and needs " + what);
}

std::optional<std::int64_t> DeepSpeedResolver::hidden_size() const {
  if (facts_.hidden_sizes.empty()) return std::nullopt;
  return *std::max_element(facts_.hidden_sizes.begin(), facts_.hidden_sizes.end());
}

void DeepSpeedResolver::stage() {
  if (zero_.is_auto("stage")) {
    stage_ = 2;
    out_.sources["strategy"] = "auto: 2";
  } else if (const auto given = zero_.integer("stage", 0, 3)) {
    stage_ = static_cast<int>(*given);
    from("strategy", zero_, "stage");
  } else {
    out_.sources["strategy"] = "default: stage 0";
  }
  out_.sharding.strategy = static_cast<ShardingStrategy>(stage_);
}

void DeepSpeedResolver::buckets() {
  if (stage_ == 0) return;
  const std::string key = "reduce_bucket_size";
  auto& elements = out_.sharding.reduce_bucket_elements;
  if (zero_.is_auto(key)) {
    if (const auto h = hidden_size()) {
      elements = *h * *h;
      out_.sources["reduce_bucket_elements"] = "auto: hidden_size squared";
    } else {
      missing(zero_, key, "the model's hidden_size");
    }
  } else if (const auto given = zero_.integer(key, 1)) {
    elements = *given;
    from("reduce_bucket_elements", zero_, key);
  }
  if (stage_ == 3 && zero_.has(key)) out_.notes.push_back(zero_.origin(key) + ": with stage 3 each unit is reduced as one; buckets hold the rest");
}

void DeepSpeedResolver::stage3() {
  if (stage_ != 3) return;
  auto& sharding = out_.sharding;
  const auto h = hidden_size();

  std::string key = "stage3_param_persistence_threshold";
  sharding.persistence_threshold = 100'000;
  out_.sources["persistence_threshold"] = "default of DeepSpeed";
  if (zero_.is_auto(key)) {
    if (h) {
      sharding.persistence_threshold = 10 * *h;
      out_.sources["persistence_threshold"] = "auto: 10*hidden_size";
    } else {
      missing(zero_, key, "the model's hidden_size");
    }
  } else if (const auto given = zero_.integer(key)) {
    sharding.persistence_threshold = *given;
    from("persistence_threshold", zero_, key);
  }

  key = "stage3_prefetch_bucket_size";
  std::optional<std::int64_t> elements;
  if (zero_.is_auto(key)) {
    if (h) {
      elements = static_cast<std::int64_t>(0.9 * static_cast<double>(*h) * static_cast<double>(*h));
    } else {
      missing(zero_, key, "the model's hidden_size");
    }
  } else {
    elements = zero_.integer(key);
  }
  if (elements) {
    sharding.forward_prefetch = sharding.backward_prefetch = *elements > 0;
    const auto source = zero_.is_auto(key) ? "auto: 0.9*hidden_size squared = " + std::to_string(*elements) : zero_.origin(key);
    out_.sources["forward_prefetch"] = out_.sources["backward_prefetch"] = source;
    if (*elements > 0) out_.notes.push_back(zero_.origin(key) + ": the next unit is gathered ahead, whatever its size; only 0 turns that off");
  }

  key = "stage3_allgather_sequential";
  if (zero_.boolean(key).value_or(false)) {
    sharding.forward_prefetch = sharding.backward_prefetch = false;
    from("forward_prefetch", zero_, key);
    from("backward_prefetch", zero_, key);
  }

  key = "stage3_gather_16bit_weights_on_model_save";
  if (zero_.is_auto(key)) {
    out_.sources["gather_16bit_weights_on_model_save"] = "auto: false";
  } else if (const auto gather = zero_.boolean(key)) {
    out_.gather_16bit_weights_on_model_save = *gather;
    from("gather_16bit_weights_on_model_save", zero_, key);
  }
}

Offload DeepSpeedResolver::read_offload(const Section& section, bool optimizer) {
  Offload made;
  std::string device = "none";
  if (!section.is_auto("device")) device = section.choice("device", {"none", "cpu", "nvme"}).value_or("none");
  const auto path = section.is_auto("nvme_path") ? std::nullopt : section.text("nvme_path");
  const auto buffers = section.integer("buffer_count", 1, 1024);
  const auto pinned = section.boolean("pin_memory");
  const auto elements = optimizer ? std::nullopt : section.integer("buffer_size", 1, std::int64_t{1} << 40);
  made.place = device == "none" ? Offload::Place::None : device == "cpu" ? Offload::Place::Host : Offload::Place::Disk;
  if (made.place == Offload::Place::Disk) {
    if (!path || path->empty() || *path == "none") section.fail("nvme_path", "must name an existing directory, since device is nvme");
    made.path = *path;
  }
  if (buffers) made.num_buffers = static_cast<int>(*buffers);
  if (pinned) made.pin_memory = *pinned;
  if (elements) made.chunk_bytes = *elements * static_cast<std::int64_t>(size_of(out_.sharding.param_dtype.value_or(DType::F32)));
  return made;
}

void DeepSpeedResolver::offload() {
  const auto& sub_group = "sub_group_size";
  if (stage_ >= 1) {
    const auto section = zero_.section("offload_optimizer");
    out_.sharding.offload_optimizer = read_offload(section, true);
    if (section.has("device")) from("offload_optimizer", section, "device");
  }
  if (stage_ == 3) {
    const auto section = zero_.section("offload_param");
    out_.sharding.offload_params = read_offload(section, false);
    if (section.has("device")) from("offload_params", section, "device");
  } else if (zero_.has("offload_param")) {
    // Accelerate writes the section for every stage.
    const auto section = zero_.section("offload_param");
    if (read_offload(section, false).place != Offload::Place::None) section.fail("device", "has an effect only with stage 3; remove it or write none");
  }
  constexpr std::int64_t unset = 1'000'000'000;  // DeepSpeed's default stands for "not chosen"
  const bool offloaded = out_.sharding.offload_optimizer.place != Offload::Place::None;
  if (const auto elements = zero_.has(sub_group) ? zero_.integer(sub_group, 1, std::int64_t{1} << 40) : std::nullopt; elements && *elements != unset) {
    if (!offloaded) zero_.fail(sub_group, "has an effect only with offload_optimizer; remove it");
    out_.sharding.offload_optimizer.chunk_bytes = 4 * *elements;
    out_.sources["offload_optimizer"] += ", " + zero_.origin(sub_group);
  }
}

bool DeepSpeedResolver::enabled(const Section& section, const std::string& precision) {
  const auto argument = facts_.mixed_precision.value_or("no");
  bool on = false;
  std::string source;
  if (section.is_auto("enabled")) {
    on = argument == precision;
    source = "auto: mixed_precision " + argument;
  } else if (const auto given = section.boolean("enabled")) {
    on = *given;
    source = section.origin("enabled");
    if (argument != "no" && on != (argument == precision)) {
      section.fail("enabled", std::string{"is "} + (on ? "true" : "false") + ", but mixed_precision is " + argument +
                                  "; write \"auto\" or make them agree");
    }
  } else {
    on = argument == precision;
    source = "argument mixed_precision";
  }
  if (on) {
    out_.mixed_precision = precision;
    out_.sources["mixed_precision"] = source;
  }
  return on;
}

void DeepSpeedResolver::precision() {
  check_precision(facts_);
  const auto fp16 = root_.section("fp16");
  const auto bf16 = root_.section("bf16");
  const bool half = enabled(fp16, "fp16");
  const bool brain = enabled(bf16, "bf16");
  if (half && brain) bf16.fail("enabled", "excludes fp16.enabled; keep one");
  loss_scale(fp16);
}

void DeepSpeedResolver::loss_scale(const Section& fp16) {
  LossScale scale;
  scale.policy = LossScale::Policy::DeepSpeed;
  const auto constant = fp16.number("loss_scale").value_or(0);
  scale.dynamic = constant == 0;
  scale.initial = scale.dynamic ? std::ldexp(1.0, static_cast<int>(fp16.integer("initial_scale_power", 0, 120).value_or(16))) : constant;
  if (!scale.dynamic) (void)fp16.integer("initial_scale_power", 0, 120);
  scale.growth_interval = fp16.integer("loss_scale_window", 1).value_or(1000);
  scale.hysteresis = static_cast<int>(fp16.integer("hysteresis", 1, 1'000'000).value_or(2));
  scale.consecutive_hysteresis = fp16.boolean("consecutive_hysteresis").value_or(false);
  scale.minimum = fp16.number("min_loss_scale").value_or(1);
  if (out_.mixed_precision != "fp16") return;
  if (scale.dynamic && scale.minimum > scale.initial) fp16.fail("min_loss_scale", "is above the initial scale 2^initial_scale_power");
  out_.loss_scale = scale;
  out_.sources["loss_scale"] = root_.has("fp16") ? root_.origin("fp16") : "default of DeepSpeed";
}

void DeepSpeedResolver::types() {
  auto& sharding = out_.sharding;
  const bool low = out_.mixed_precision != "no";
  if (low && stage_ > 0) {
    sharding.param_dtype = dtype_named(out_.mixed_precision);
    out_.sources["param_dtype"] = out_.sources["mixed_precision"];
  }
  if (const auto word = root_.choice("communication_data_type", {"fp16", "bf16", "fp32"})) {
    sharding.reduce_dtype = dtype_named(*word);
    from("reduce_dtype", root_, "communication_data_type");
  } else if (low && facts_.compat) {
    sharding.reduce_dtype = dtype_named(out_.mixed_precision);
    out_.sources["reduce_dtype"] = "compat: as param_dtype";
  } else if (low) {
    out_.sources["reduce_dtype"] = "default (DeepSpeed reduces in " + out_.mixed_precision + ")";
  }
  const auto types = root_.section("data_types");
  const std::vector<std::string> words{"fp32", "fp16", "bf16"};
  if (const auto word = types.choice("param_dtype", words)) {
    sharding.param_dtype = dtype_named(*word);
    from("param_dtype", types, "param_dtype");
  }
  if (const auto word = types.choice("buffer_dtype", words)) {
    sharding.buffer_dtype = dtype_named(*word);
    from("buffer_dtype", types, "buffer_dtype");
  }
}

void DeepSpeedResolver::clipping() {
  const std::string key = "gradient_clipping";
  if (root_.is_auto(key)) {
    out_.gradient_clipping = 1;
    out_.sources[key] = "auto: 1.0";
  } else if (const auto norm = root_.number(key)) {
    out_.gradient_clipping = *norm;
    from(key, root_, key);
  } else if (facts_.compat) {
    out_.gradient_clipping = 1;
    out_.sources[key] = "compat: DeepSpeed's default";
  } else {
    out_.sources[key] = "default (DeepSpeed clips at 1.0: write gradient_clipping to have that)";
  }
}

std::optional<std::int64_t> DeepSpeedResolver::micro_batch() {
  const std::string key = "train_micro_batch_size_per_gpu";
  auto sizes = facts_.batch_sizes;
  if (facts_.split_batches && facts_.num_processes) {
    for (auto& size : sizes) {
      if (size % *facts_.num_processes != 0) {
        root_.fail(key, "batches of " + std::to_string(size) + " cannot be split evenly over " + std::to_string(*facts_.num_processes) + " ranks");
      }
      size /= *facts_.num_processes;
    }
  }
  if (root_.is_auto(key)) {
    if (sizes.empty() || (facts_.split_batches && !facts_.num_processes)) {
      missing(root_, key, sizes.empty() ? "the batch size of a prepared DataLoader" : "num_processes, since batches are split");
      return std::nullopt;
    }
    const auto [least, most] = std::minmax_element(sizes.begin(), sizes.end());
    out_.sources[key] = std::string{"auto: "} + (is_train_batch_min_ ? "least" : "largest") + " batch_size of the prepared loaders" +
                        (facts_.split_batches ? ", split" : "");
    return is_train_batch_min_ ? *least : *most;
  }
  const auto given = root_.integer(key, 1, max_batch);
  if (!given) return std::nullopt;
  from(key, root_, key);
  if (!sizes.empty() && std::find(sizes.begin(), sizes.end(), *given) == sizes.end()) {
    std::string have;
    for (const auto size : sizes) have += " " + std::to_string(size);
    root_.fail(key, "is " + std::to_string(*given) + ", but the prepared loaders have batch_size" + have + "; write \"auto\"");
  }
  return given;
}

void DeepSpeedResolver::batches() {
  const std::string train_key = "train_batch_size";
  const std::string micro_key = "train_micro_batch_size_per_gpu";
  const std::string steps_key = "gradient_accumulation_steps";
  auto micro = micro_batch();
  std::optional<std::int64_t> steps;
  if (root_.is_auto(steps_key)) {
    steps = facts_.gradient_accumulation_steps.value_or(1);
    out_.sources[steps_key] = "auto: the Accelerator's";
  } else if ((steps = root_.integer(steps_key, 1, 1'000'000))) {
    from(steps_key, root_, steps_key);
    if (facts_.gradient_accumulation_steps && *steps != *facts_.gradient_accumulation_steps) {
      out_.notes.push_back(root_.origin(steps_key) + ": " + std::to_string(*steps) + " wins over the Accelerator's " +
                           std::to_string(*facts_.gradient_accumulation_steps));
    }
  } else if (facts_.gradient_accumulation_steps) {
    steps = *facts_.gradient_accumulation_steps;
    out_.sources[steps_key] = "argument";
  }
  const bool train_auto = root_.is_auto(train_key);
  const auto train = train_auto ? std::nullopt : root_.integer(train_key, 1);  // compared only: no product of it
  if (train) from(train_key, root_, train_key);
  const bool micro_open = root_.is_auto(micro_key) && !micro;

  if (const auto ranks = facts_.num_processes; ranks && train && !micro_open) {
    if (micro && !steps) {
      steps = std::max<std::int64_t>(1, *train / *micro / *ranks);
      out_.sources[steps_key] = "train_batch_size / train_micro_batch_size_per_gpu / num_processes";
    }
    if (!steps) {
      steps = 1;
      out_.sources[steps_key] = "default";
    }
    if (!micro) {
      micro = *train / *ranks / *steps;
      out_.sources[micro_key] = "train_batch_size / num_processes / gradient_accumulation_steps";
    }
    if (*train != *micro * *steps * *ranks) {
      root_.fail(train_key, "is " + std::to_string(*train) + ", which is not train_micro_batch_size_per_gpu " + std::to_string(*micro) +
                                " x gradient_accumulation_steps " + std::to_string(*steps) + " x num_processes " +
                                std::to_string(*ranks) + " = " + std::to_string(*micro * *steps * *ranks));
    }
  }
  out_.train_batch_size = train;
  out_.train_micro_batch_size_per_gpu = micro;
  out_.gradient_accumulation_steps = static_cast<int>(std::min<std::int64_t>(steps.value_or(1), 1'000'000'000));
  if (!train && micro && facts_.num_processes) {
    out_.train_batch_size = *micro * out_.gradient_accumulation_steps * *facts_.num_processes;
    out_.sources[train_key] = std::string{train_auto ? "auto: " : ""} + "micro batch x accumulation steps x num_processes";
  } else if (train_auto && !micro) {
    if (!micro_open) missing(root_, train_key, "the batch size of a prepared DataLoader");
  } else if ((train_auto || train) && !facts_.num_processes) {
    if (train_auto) missing(root_, train_key, "num_processes");
  }
}

}  // namespace troupe::detail

#include "commands.hpp"
#include "config_file.hpp"
#include "step_estimate.hpp"

#include <troupe/errors.hpp>
#include <troupe/llama_shape.hpp>
#include <troupe/memory_estimate.hpp>
#include <troupe/model_size.hpp>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace troupe::tools {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string model;
  std::vector<std::string> strategies;
  int ranks = 1;
  std::string precision;
  std::string grad_dtype = "fp32";
  std::string config;
  bool json = false;
  StepOptions step;
};

const std::map<std::string, ShardingStrategy> strategies{
    {"replicate", ShardingStrategy::Replicate},       {"ddp", ShardingStrategy::Replicate},
    {"zero1", ShardingStrategy::ShardOptimizer},      {"zero2", ShardingStrategy::ShardGradients},
    {"zero3", ShardingStrategy::ShardParameters},     {"full_shard", ShardingStrategy::ShardParameters},
    {"shard_grad_op", ShardingStrategy::ShardParameters}};

struct Line {
  std::string name;
  ShardingOptions sharding;
  MemoryEstimate estimate;
};

DType dtype(const std::string& word) { return word == "bf16" ? DType::BF16 : word == "fp16" ? DType::F16 : DType::F32; }

/// What to estimate: the strategies named, or the configuration's, or all.
std::vector<Line> lines_of(const Options& o) {
  std::vector<Line> lines;
  if (!o.config.empty()) {
    ConfigFacts facts{.num_processes = o.ranks, .partial = true};
    if (!o.precision.empty()) facts.mixed_precision = o.precision;
    if (const auto hidden = read_hidden_size(o.model)) facts.hidden_sizes = {*hidden};
    const auto config = resolve_file(o.config, facts);
    lines.push_back({short_name(config.sharding.strategy), config.sharding, {}});
    return lines;
  }
  const auto names = o.strategies.empty() ? std::vector<std::string>{"replicate", "zero1", "zero2", "zero3"} : o.strategies;
  for (const auto& name : names) {
    ShardingOptions sharding;
    sharding.strategy = strategies.at(name);
    sharding.reshard_after_forward = name != "shard_grad_op";
    // Replicated parameters stay fp32 under mixed precision: operations cast.
    if (!o.precision.empty() && o.precision != "no" && sharding.strategy != ShardingStrategy::Replicate) sharding.param_dtype = dtype(o.precision);
    lines.push_back({name, sharding, {}});
  }
  return lines;
}

std::string mib(std::int64_t bytes) {
  char text[32];
  (void)std::snprintf(text, sizeof text, "%.1f", static_cast<double>(bytes) / (1 << 20));
  return text;
}

void print_table(const Options& o, const ModelSize& model, const std::vector<Line>& lines) {
  const auto frozen = model.num_frozen > 0 ? " trained, " + std::to_string(model.num_frozen) + " frozen" : "";
  std::printf("%s: %lld parameters%s in %d units, the largest %lld, the root %lld\n", o.model.c_str(), static_cast<long long>(model.num_params), frozen.c_str(),
              model.num_units, static_cast<long long>(model.largest_unit), static_cast<long long>(model.root_unit));
  std::printf("MiB a rank of %d, AdamW, without activations; resident = params + grads + optimizer, peak = resident + gathered\n\n", o.ranks);
  std::printf("%-14s %10s %10s %10s %10s %10s %10s %10s  %s\n", "strategy", "params", "grads", "optimizer", "resident", "gathered", "peak", "offloaded", "model state is");
  for (const auto& [name, sharding, e] : lines) {
    std::printf("%-14s %10s %10s %10s %10s %10s %10s %10s  %s\n", name.c_str(), mib(e.params).c_str(), mib(e.grads).c_str(), mib(e.optimizer).c_str(),
                mib(e.resident()).c_str(), mib(e.gathered).c_str(), mib(e.peak()).c_str(), mib(e.host).c_str(), e.formula.c_str());
  }
}

Json json_of(const Options& o, const ModelSize& model, const std::vector<Line>& lines) {
  Json list = Json::array();
  for (const auto& [name, sharding, e] : lines) {
    list.push_back({{"strategy", name}, {"params", e.params}, {"grads", e.grads}, {"optimizer", e.optimizer}, {"resident", e.resident()},
                    {"gathered", e.gathered}, {"peak", e.peak()}, {"offloaded", e.host}, {"formula", e.formula}});
  }
  return {{"model", o.model}, {"num_params", model.num_params}, {"num_frozen", model.num_frozen}, {"num_units", model.num_units}, {"largest_unit", model.largest_unit},
          {"root_unit", model.root_unit}, {"ranks", o.ranks}, {"bytes_per_rank", list}};
}

/// A Llama by its preset's name or its config.json; nothing: the weights must say how large the model is.
std::optional<LlamaShape> llama_of(const Options& o) {
  if (const auto preset = llama_preset(o.model)) return preset;
  if (std::filesystem::exists(o.model)) return read_llama_shape(o.model);
  if (o.model.find('/') != std::string::npos) return std::nullopt;
  std::string names;
  for (const auto& name : llama_preset_names()) names += (names.empty() ? "" : ", ") + name;
  throw Failure{Errc::FileNotFound, o.model + ": there is no such model directory or file, and no preset of that name; presets: " + names};
}

bool has_weights(const std::filesystem::path& model) {
  if (!std::filesystem::is_directory(model)) return model.extension() == ".safetensors";
  return std::filesystem::exists(model / "model.safetensors") || std::filesystem::exists(model / "model.safetensors.index.json");
}

int run(const Options& o) {
  const auto llama = llama_of(o);
  if (!llama && (o.step.batch_size > 0 || o.step.lora_r > 0)) throw Failure{Errc::Unsupported, o.model + ": is no Llama; --batch-size and --lora are for these"};
  const bool by_shape = llama && (o.step.lora_r > 0 || !has_weights(o.model));
  auto lines = lines_of(o);
  ModelSize model;
  bool sixteen_bit = false;
  for (auto& line : lines) {
    const auto threshold = line.sharding.strategy == ShardingStrategy::ShardParameters ? line.sharding.persistence_threshold : 0;
    model = by_shape ? model_size_of(*llama, o.step.lora_r, threshold) : read_model_size(o.model, threshold);
    StateTypes types;
    if (line.sharding.param_dtype && o.grad_dtype != "fp32") types.grad_dtype = *line.sharding.param_dtype;
    sixteen_bit = sixteen_bit || (line.sharding.param_dtype && size_of(*line.sharding.param_dtype) == 2) || (!o.precision.empty() && o.precision != "no");
    line.estimate = estimate_memory(model, line.sharding, o.ranks, types);
  }
  std::optional<StepEstimate> step;
  if (o.step.batch_size > 0) step = estimate_step(*llama, model, o.step, o.ranks, sixteen_bit);
  if (o.json) {
    auto json = json_of(o, model, lines);
    if (step) json["step"] = json_of(*step, o.step, o.ranks);
    std::puts(json.dump(2).c_str());
  } else {
    print_table(o, model, lines);
    if (step) print_step(*step, o.step, o.ranks);
  }
  return 0;
}

}  // namespace

Command add_estimate_memory(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("estimate-memory", "Says what a rank needs to train a model, by ZeRO arithmetic, and how long an update of a Llama takes; all strategies unless one is named");
  command->add_option("MODEL", o.model, "a Hugging Face directory or a safetensors file; of a Llama also config.json alone, or llama-2-7b, llama-2-13b, llama-2-70b …")->required();
  std::vector<std::string> names;
  for (const auto& [name, strategy] : strategies) names.push_back(name);
  auto* strategy = command->add_option("--strategy", o.strategies, "may be given again")->allow_extra_args(false)->check(CLI::IsMember(names));
  command->add_option("--ranks,--world-size,--num-devices", o.ranks, "ranks")->capture_default_str()->check(CLI::Range(1, 16'384));
  command->add_option("--precision", o.precision, "of computing; masters stay fp32")->check(CLI::IsMember({"no", "fp16", "bf16"}));
  command->add_option("--grad-dtype", o.grad_dtype, "of gradients that wait for the optimizer: fp32, or as parameters are computed with")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "param"}));
  command->add_option("--config", o.config, "DeepSpeed JSON or accelerate YAML that says strategy and precision")->excludes(strategy);
  add_step_options(*command, o.step);
  command->add_flag("--json", o.json, "as JSON, in bytes");
  return [options] { return run(*options); };
}

}  // namespace troupe::tools

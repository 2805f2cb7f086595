#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <regex>
#include <set>
#include <troupe/config.hpp>
#include <troupe/errors.hpp>
#include <troupe/fingerprint.hpp>
#include <troupe/lora.hpp>
#include <troupe/parameter_source.hpp>
#include <troupe/random.hpp>

#include "lora_plan.hpp"

namespace troupe {

namespace {

using detail::LoraPlan;

bool is_named(const std::string& module, const std::string& wanted) { return module == wanted || module.ends_with("." + wanted); }

bool is_any(const std::string& module, const std::vector<std::string>& wanted) {
  return std::any_of(wanted.begin(), wanted.end(), [&](const auto& w) { return is_named(module, w); });
}

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

/// Throws unless each of `wanted` names a module; `what` is the key.
void check_all_there(const std::vector<std::string>& wanted, const std::vector<std::string>& modules, const char* what) {
  std::set<std::string> ends;
  for (const auto& module : modules) ends.insert(last_part(module));
  for (const auto& w : wanted) {
    if (std::any_of(modules.begin(), modules.end(), [&](const auto& module) { return is_named(module, w); })) continue;
    const auto near = nearest_name(w, {ends.begin(), ends.end()});
    throw Failure{Errc::InvalidConfig, std::string("LoRA: ") + what + " '" + w + "' is the name of no module of this model that it could mean" +
                                           (near.empty() ? "" : "; did you mean '" + near + "'?")};
  }
}

std::regex pattern_of(const std::string& text) {
  try {
    return std::regex{text};
  } catch (const std::regex_error& error) {
    throw Failure{Errc::InvalidConfig, "LoRA: target_pattern '" + text + "' is no regular expression: " + error.what()};
  }
}

/// modules_to_save of a model whose embedding and head are one tensor.
void check_tied(const LoraConfig& config, const torch::nn::Module& model, const LoraPlan& plan) {
  std::set<const void*> trained;
  for (const auto& [name, tensor] : plan.trained) trained.insert(tensor.unsafeGetTensorImpl());
  std::map<const void*, std::string> first;
  for (const auto& item : model.named_parameters()) {
    const void* impl = item.value().unsafeGetTensorImpl();
    const auto [found, fresh] = first.try_emplace(impl, item.key());
    if (fresh || !trained.contains(impl) || config.ensure_weight_tying) continue;
    throw Failure{Errc::InvalidConfig, "LoRA: modules_to_save would train " + found->second + ", which is one tensor with " + item.key() +
                                           "; say ensure_weight_tying = true to train both as one (PEFT would part them)"};
  }
}

void add_adapter(const LoraPlan::Target& target, const std::shared_ptr<const LoraConfig>& config) {
  auto& layer = *target.layer;
  auto a_RI = at::empty({config->r, layer.in_features()}, at::kFloat);
  const auto bound = 1 / std::sqrt(static_cast<double>(layer.in_features()));  // kaiming-uniform with a = √5
  a_RI.uniform_(-bound, bound, rank_generator());
  layer.set_adapter({.a_RI = a_RI,
                     .b_OR = at::zeros({layer.out_features(), config->r}, at::kFloat),
                     .scaling = config->scaling(),
                     .dropout = config->lora_dropout,
                     .config = config});
  layer.adapter()->a_RI.set_requires_grad(true);
  layer.adapter()->b_OR.set_requires_grad(true);
}

void check_whole(const Unit& model, const char* call) {
  const auto parameters = model.parameters();
  const bool whole = std::all_of(parameters.begin(), parameters.end(), [](const at::Tensor& p) { return p.numel() > 0 && !is_deferred(p); });
  if (model.unit_hooks() || !whole) {
    throw Failure{Errc::InvalidArgument, std::string(call) + ": the model's parameters are sharded, or not in memory; save_adapter() it, and merge in a process that "
                                                             "loads the base whole"};
  }
}

void merge(LinearImpl& layer, bool keep) {
  const c10::AutoGradMode no_graph{false};
  auto& adapter = *layer.adapter();
  const auto added = at::matmul(adapter.b_OR.to(at::kFloat), adapter.a_RI.to(at::kFloat)).mul_(adapter.scaling);
  if (keep) adapter.kept_weight = layer.weight.detach().clone();
  layer.weight.copy_(layer.weight.to(at::kFloat) + added);
}

}  // namespace

namespace detail {

LoraPlan plan_lora(const Unit& model, const LoraConfig& config) {
  config.check();
  LoraPlan plan;
  std::vector<std::string> linears, all;
  const bool every = config.target_pattern == "all-linear";
  const auto pattern = config.target_pattern.empty() || every ? std::regex{} : pattern_of(config.target_pattern);
  const auto is_target = [&](const std::string& name) {
    if (every) return true;
    return config.target_pattern.empty() ? is_any(name, config.target_modules) : std::regex_match(name, pattern);
  };
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    all.push_back(item.key());
    auto* layer = dynamic_cast<LinearImpl*>(item.value().get());
    const bool saved = is_any(item.key(), config.modules_to_save);
    if (layer) linears.push_back(item.key());
    if (layer && layer->adapter()) throw Failure{Errc::InvalidArgument, "LoRA: the model has adapters already, at " + item.key()};
    if (layer && !saved && is_target(item.key())) plan.targets.push_back({item.key(), layer});
    if (!saved) continue;
    for (const auto& parameter : item.value()->named_parameters()) plan.trained.emplace_back(item.key() + "." + parameter.key(), parameter.value());
  }
  if (config.target_pattern.empty()) check_all_there(config.target_modules, linears, "target_modules:");
  check_all_there(config.modules_to_save, all, "modules_to_save:");
  if (plan.targets.empty()) throw Failure{Errc::InvalidConfig, "LoRA: '" + config.target_pattern + "' is the name of no linear layer of this model"};
  check_tied(config, model, plan);
  // A tied parameter is trained at all its places.
  for (const auto& item : model.named_parameters()) {
    const auto same = [&](const auto& t) { return t.second.is_same(item.value()); };
    const auto named = [&](const auto& t) { return t.first == item.key(); };
    if (std::any_of(plan.trained.begin(), plan.trained.end(), same) && std::none_of(plan.trained.begin(), plan.trained.end(), named)) {
      plan.trained.emplace_back(item.key(), item.value());
    }
    if (config.bias == "none" || !item.key().ends_with(".bias") || std::any_of(plan.trained.begin(), plan.trained.end(), named)) continue;
    const auto layer = item.key().substr(0, item.key().rfind('.'));
    const bool adapted = std::any_of(plan.targets.begin(), plan.targets.end(), [&](const auto& t) { return t.name == layer; });
    if (config.bias == "all" || adapted) plan.trained.emplace_back(item.key(), item.value());
  }
  return plan;
}

std::string peft_name(const std::string& parameter, const std::vector<LoraPlan::Target>& targets) {
  auto name = parameter;
  const auto layer = name.substr(0, name.rfind('.'));
  const bool of_base = std::any_of(targets.begin(), targets.end(), [&](const auto& t) { return t.name == layer; });
  if (of_base) name.insert(layer.size(), ".base_layer");
  return "base_model.model." + name;
}

std::vector<LoraPlan::Target> adapted_layers(const Unit& model) {
  std::vector<LoraPlan::Target> layers;
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    auto* layer = dynamic_cast<LinearImpl*>(item.value().get());
    if (layer && layer->adapter()) layers.push_back({item.key(), layer});
  }
  return layers;
}

}  // namespace detail

double LoraConfig::scaling() const { return lora_alpha / (use_rslora ? std::sqrt(static_cast<double>(r)) : static_cast<double>(r)); }

void LoraConfig::check(const std::string& where) const {
  const auto refuse = [&](const std::string& text) { throw Failure{Errc::InvalidConfig, where + ": " + text}; };
  if (r < 1) refuse("r = " + std::to_string(r) + " should be 1 or more");
  if (!(lora_dropout >= 0 && lora_dropout < 1)) refuse("lora_dropout = " + std::to_string(lora_dropout) + " should be in [0, 1)");
  if (!std::isfinite(lora_alpha) || lora_alpha == 0) refuse("lora_alpha = " + std::to_string(lora_alpha) + " leaves adapters without effect");
  if (bias != "none" && bias != "all" && bias != "lora_only") refuse("bias '" + bias + "' is none of none, lora_only, all");
  if (target_modules.empty() && target_pattern.empty()) refuse("target_modules is empty");
}

void apply_lora(Unit& model, const LoraConfig& config) {
  if (model.unit_hooks()) throw Failure{Errc::InvalidArgument, "LoRA: adapters are added before the model is prepared"};
  const auto plan = detail::plan_lora(model, config);
  const auto base = fingerprint(model);
  for (auto& parameter : model.parameters()) parameter.set_requires_grad(false);
  const auto kept = std::make_shared<const LoraConfig>(config);
  for (const auto& target : plan.targets) add_adapter(target, kept);
  for (auto [name, parameter] : plan.trained) parameter.set_requires_grad(true);
  model.set_frozen_base(base);
}

void merge_lora(Unit& model) {
  check_whole(model, "merge_lora");
  for (const auto& [name, layer] : detail::adapted_layers(model)) {
    if (!layer->merged()) merge(*layer, true);
  }
}

void unmerge_lora(Unit& model) {
  check_whole(model, "unmerge_lora");
  const c10::AutoGradMode no_graph{false};
  for (const auto& [name, layer] : detail::adapted_layers(model)) {
    if (layer->merged()) layer->weight.copy_(std::exchange(layer->adapter()->kept_weight, {}));
  }
}

void merge_and_unload(Unit& model) {
  check_whole(model, "merge_and_unload");
  for (const auto& [name, layer] : detail::adapted_layers(model)) {
    if (!layer->merged()) merge(*layer, false);
    layer->remove_adapter();
  }
  for (auto& parameter : model.parameters()) parameter.set_requires_grad(true);
  model.set_frozen_base({});
}

const LoraConfig* lora_config(const Unit& model) {
  const auto layers = detail::adapted_layers(model);
  return layers.empty() ? nullptr : layers.front().layer->adapter()->config.get();
}

std::vector<at::Tensor> trainable_parameters(const torch::nn::Module& model) {
  std::vector<at::Tensor> trained;
  for (const auto& parameter : model.parameters()) {
    const bool known = std::any_of(trained.begin(), trained.end(), [&](const auto& t) { return t.is_same(parameter); });
    if (parameter.requires_grad() && !known) trained.push_back(parameter);
  }
  return trained;
}

ParameterCount count_parameters(const torch::nn::Module& model) {
  ParameterCount count;
  std::set<const void*> seen;
  for (const auto& parameter : model.parameters()) {
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    count.all += parameter.numel();
    if (parameter.requires_grad()) count.trained += parameter.numel();
  }
  return count;
}

std::int64_t lora_parameter_count(const Unit& model, const LoraConfig& config) {
  const auto plan = detail::plan_lora(model, config);
  std::int64_t count = 0;
  for (const auto& target : plan.targets) count += config.r * (target.layer->in_features() + target.layer->out_features());
  std::set<const void*> seen;
  for (const auto& [name, parameter] : plan.trained) {
    if (seen.insert(parameter.unsafeGetTensorImpl()).second) count += parameter.numel();
  }
  return count;
}

}  // namespace troupe

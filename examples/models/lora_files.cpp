#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <troupe/accelerator.hpp>
#include <troupe/errors.hpp>
#include <troupe/lora.hpp>
#include <troupe/parameter_source.hpp>
#include <troupe/tensor_files.hpp>

#include "json_fields.hpp"
#include "lora_plan.hpp"

namespace troupe {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Named = std::vector<std::pair<std::string, at::Tensor>>;

constexpr const char* config_name = "adapter_config.json";
constexpr const char* weights_name = "adapter_model.safetensors";

/// Keys that say nothing about what is computed.
const std::set<std::string> told{"auto_mapping",       "base_model_name_or_path", "inference_mode", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
                                 "revision",           "task_type",               "r",              "lora_alpha",    "bias",      "use_rslora",   "lora_dropout",
                                 "ensure_weight_tying", "target_modules",         "modules_to_save"};

bool is_neutral(const json& value) { return value.is_null() || value == false || ((value.is_object() || value.is_array()) && value.empty()); }

void refuse_what_is_not_built(const json& object, const std::string& where) {
  for (const auto& [key, value] : object.items()) {
    if (told.contains(key) || is_neutral(value) || (key == "init_lora_weights" && value == true)) continue;
    throw Failure{Errc::Unsupported, where + ": '" + key + "' = " + value.dump() + " is not built here"};
  }
  for (const auto& [key, want] : {std::pair{"peft_type", "LORA"}, {"task_type", "CAUSAL_LM"}}) {
    const auto found = object.find(key);
    if (found != object.end() && !found->is_null() && *found != want) throw Failure{Errc::Unsupported, where + ": " + key + " is " + found->dump() + ", not \"" + want + "\""};
  }
}

void write(const LoraConfig& config, const Named& tensors, const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) throw Failure{Errc::StorageUnavailable, directory.string() + ": cannot be made: " + error.message()};
  write_safetensors(directory / weights_name, tensors);
  config.save(directory / config_name);
}

const LoraConfig& config_of(const Unit& model, const char* call) {
  if (const auto* config = lora_config(model)) return *config;
  throw Failure{Errc::InvalidArgument, std::string(call) + ": the model has no adapters"};
}

/// A tensor of the file, where it belongs and what it must look like.
struct Expected {
  std::string parameter;
  std::vector<std::int64_t> sizes;
};

std::map<std::string, Expected> expected_of(const detail::LoraPlan& plan, const LoraConfig& config) {
  std::map<std::string, Expected> all;
  for (const auto& [name, layer] : plan.targets) {
    all["base_model.model." + name + ".lora_A.weight"] = {name + ".lora_A.weight", {config.r, layer->in_features()}};
    all["base_model.model." + name + ".lora_B.weight"] = {name + ".lora_B.weight", {layer->out_features(), config.r}};
  }
  for (const auto& [name, parameter] : plan.trained) all[detail::peft_name(name, plan.targets)] = {name, parameter.sizes().vec()};
  return all;
}

void check_tensors(const std::map<std::string, Expected>& expected, const TensorMap& tensors, const fs::path& file, std::int64_t r) {
  const auto refuse = [&](const std::string& text) { throw Failure{Errc::FileCorrupt, file.string() + ": " + text}; };
  for (const auto& [name, what] : expected) {
    const auto found = tensors.find(name);
    const auto wanted = c10::str(c10::IntArrayRef{what.sizes});
    if (found == tensors.end()) refuse("lacks the tensor '" + name + "' of shape " + wanted);
    if (found->second.sizes() != c10::IntArrayRef{what.sizes}) {
      refuse("tensor '" + name + "' has shape " + c10::str(found->second.sizes()) + "; this model and r = " + std::to_string(r) + " of adapter_config.json want " + wanted);
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (!expected.contains(name)) refuse("has the tensor '" + name + "', which is none of this model's adapters");
  }
}

}  // namespace

LoraConfig LoraConfig::from_file(const fs::path& file) {
  const auto object = detail::read_json_object(file);
  const auto where = file.string();
  refuse_what_is_not_built(object, where);
  LoraConfig c;
  detail::read_number(object, "r", where, c.r);
  detail::read_number(object, "lora_alpha", where, c.lora_alpha);
  detail::read_number(object, "lora_dropout", where, c.lora_dropout);
  detail::read_text(object, "bias", where, c.bias);
  detail::read_bool(object, "use_rslora", where, c.use_rslora);
  detail::read_bool(object, "ensure_weight_tying", where, c.ensure_weight_tying);
  detail::read_text(object, "base_model_name_or_path", where, c.base_model_name_or_path);
  detail::read_texts(object, "modules_to_save", where, c.modules_to_save);
  if (const auto found = object.find("target_modules"); found != object.end() && found->is_string()) {
    c.target_modules.clear();
    c.target_pattern = *found;
  } else {
    detail::read_texts(object, "target_modules", where, c.target_modules);
  }
  c.check(where);
  return c;
}

void LoraConfig::save(const fs::path& file) const {
  nlohmann::ordered_json out{{"peft_type", "LORA"},
                             {"task_type", "CAUSAL_LM"},
                             {"base_model_name_or_path", nullptr},
                             {"r", r},
                             {"lora_alpha", lora_alpha},
                             {"lora_dropout", lora_dropout},
                             {"target_modules", target_modules},
                             {"bias", bias},
                             {"modules_to_save", nullptr},
                             {"use_rslora", use_rslora},
                             {"ensure_weight_tying", ensure_weight_tying},
                             {"fan_in_fan_out", false},
                             {"init_lora_weights", true},
                             {"inference_mode", true}};
  if (lora_alpha == std::floor(lora_alpha)) out["lora_alpha"] = static_cast<std::int64_t>(lora_alpha);
  if (!base_model_name_or_path.empty()) out["base_model_name_or_path"] = base_model_name_or_path;
  if (!target_pattern.empty()) out["target_modules"] = target_pattern;
  if (!modules_to_save.empty()) out["modules_to_save"] = modules_to_save;
  detail::write_json(file, out);
}

void save_adapter(const Unit& model, const fs::path& directory) {
  const auto& config = config_of(model, "save_adapter");
  if (model.unit_hooks()) throw Failure{Errc::InvalidArgument, "save_adapter: an Accelerator shards this model; pass it, on every rank"};
  const auto layers = detail::adapted_layers(model);
  Named tensors;
  for (const auto& item : model.named_parameters()) {
    if (item.value().requires_grad() || item.key().find(".lora_") != std::string::npos) tensors.emplace_back(detail::peft_name(item.key(), layers), item.value().detach());
  }
  write(config, tensors, directory);
}

void save_adapter(Accelerator& accelerator, const Unit& model, const fs::path& directory) {
  const auto& config = config_of(model, "save_adapter");
  const auto layers = detail::adapted_layers(model);
  Named tensors;
  for (const auto& [name, tensor] : accelerator.get_state_dict(model, /*trained_only=*/true)) tensors.emplace_back(detail::peft_name(name, layers), tensor);
  if (accelerator.is_main_process()) write(config, tensors, directory);
  accelerator.wait_for_everyone();
}

void load_adapter(Unit& model, const fs::path& directory, bool trainable) {
  const auto config = LoraConfig::from_file(directory / config_name);
  const auto plan = detail::plan_lora(model, config);
  const auto expected = expected_of(plan, config);
  const auto tensors = read_safetensors(directory / weights_name);
  check_tensors(expected, tensors, directory / weights_name, config.r);

  apply_lora(model, config);
  const c10::AutoGradMode no_graph{false};
  const auto parameters = model.named_parameters();
  for (const auto& [name, what] : expected) {
    auto parameter = parameters[what.parameter];
    if (is_deferred(parameter)) parameter.set_data(at::empty(parameter.sizes(), parameter.options()));
    parameter.copy_(tensors.at(name));
  }
  if (trainable) return;
  for (auto& parameter : model.parameters()) parameter.set_requires_grad(false);
}

}  // namespace troupe

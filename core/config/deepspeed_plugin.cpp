#include <troupe/deepspeed_plugin.hpp>

#include "deepspeed_keys.hpp"
#include "deepspeed_resolver.hpp"

#include <troupe/errors.hpp>

namespace troupe {

namespace {

using Json = nlohmann::ordered_json;
using detail::Document;

/// The value at a dotted path, or null.
Json value_at(const Document& document, const std::string& path) {
  const Json* value = &document.root;
  for (std::size_t from = 0; from <= path.size();) {
    const auto dot = std::min(path.find('.', from), path.size());
    if (!value->is_object() || !value->contains(path.substr(from, dot - from))) return nullptr;
    value = &value->at(path.substr(from, dot - from));
    from = dot + 1;
  }
  return *value;
}

void put(Document& document, const std::string& path, Json value) {
  Json* object = &document.root;
  std::size_t from = 0;
  for (auto dot = path.find('.'); dot != std::string::npos; dot = path.find('.', from)) {
    object = &(*object)[path.substr(from, dot - from)];
    from = dot + 1;
  }
  (*object)[path.substr(from)] = std::move(value);
}

/// Lets a plugin's fields fill a document.
class Filler {
 public:
  Filler(const DeepSpeedPlugin& plugin, Document& document) : plugin_(plugin), document_(document) {}

  template <class T>
  void fill(const char* field, const std::optional<T>& value, const std::string& path) {
    if (!value) return;
    const auto there = value_at(document_, path);
    const auto found = plugin_.origins.find(field);
    const auto origin = found == plugin_.origins.end() ? std::string{"DeepSpeedPlugin."} + field : found->second;
    if (there.is_null() || there == "auto") {
      put(document_, path, *value);
      document_.origins[path] = origin;
    } else if (there != *value) {
      document_.fail(path, "is " + there.dump() + ", but " + origin + " is " + Json(*value).dump() + "; keep one");
    }
  }

 private:
  const DeepSpeedPlugin& plugin_;
  Document& document_;
};

DeepSpeedPlugin checked(Document document) {
  DeepSpeedPlugin plugin;
  plugin.hf_ds_config = std::make_shared<const Document>(std::move(document));
  (void)plugin.resolve({.partial = true});
  return plugin;
}

}  // namespace

DeepSpeedPlugin DeepSpeedPlugin::from_json(const std::string& path_or_text) {
  const auto first = path_or_text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && path_or_text[first] == '{') return checked(detail::parse_json(path_or_text, "DeepSpeed configuration"));
  return checked(detail::parse_json(detail::read_text(path_or_text), path_or_text));
}

DeepSpeedPlugin DeepSpeedPlugin::from_dict(const Json& hf_ds_config) {
  Document document;
  document.name = "hf_ds_config";
  if (!hf_ds_config.is_object()) document.fail("", "must be a dictionary");
  document.root = hf_ds_config;
  return checked(std::move(document));
}

EffectiveConfig DeepSpeedPlugin::resolve(const ConfigFacts& facts) const {
  Document document;
  if (hf_ds_config) {
    document = *hf_ds_config;
  } else {
    document.name = "DeepSpeedPlugin";
    if (!facts.batch_sizes.empty()) put(document, "train_micro_batch_size_per_gpu", "auto");
    put(document, "gradient_accumulation_steps", "auto");
  }
  Filler filler{*this, document};
  std::vector<std::string> notes;
  if (hf_ds_config) detail::check_deepspeed_keys(document, notes);
  filler.fill("zero_stage", zero_stage, "zero_optimization.stage");
  filler.fill("gradient_accumulation_steps", gradient_accumulation_steps, "gradient_accumulation_steps");
  filler.fill("gradient_clipping", gradient_clipping, "gradient_clipping");
  filler.fill("offload_optimizer_device", offload_optimizer_device, "zero_optimization.offload_optimizer.device");
  filler.fill("offload_param_device", offload_param_device, "zero_optimization.offload_param.device");
  filler.fill("offload_optimizer_nvme_path", offload_optimizer_nvme_path, "zero_optimization.offload_optimizer.nvme_path");
  filler.fill("offload_param_nvme_path", offload_param_nvme_path, "zero_optimization.offload_param.nvme_path");
  if (!hf_ds_config && !zero_stage) {
    put(document, "zero_optimization.stage", 2);
    document.origins["zero_optimization.stage"] = "default";
  }
  if (!zero3_save_16bit_model.value_or(false) && !hf_ds_config) {
    // Accelerate writes `false` whatever the stage.
  } else {
    filler.fill("zero3_save_16bit_model", zero3_save_16bit_model, "zero_optimization.stage3_gather_16bit_weights_on_model_save");
  }
  auto config = detail::DeepSpeedResolver{document, facts, is_train_batch_min}.resolve();
  config.notes.insert(config.notes.begin(), notes.begin(), notes.end());
  if (zero3_init_flag.value_or(false)) {
    config.notes.push_back(std::string{config.sharding.strategy == ShardingStrategy::ShardParameters
                                           ? "zero3_init_flag: models are built whole, then sharded by prepare()"
                                           : "zero3_init_flag: has no effect below stage 3"});
  }
  return config;
}

}  // namespace troupe

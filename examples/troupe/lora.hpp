#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <troupe/unit.hpp>
#include <vector>

namespace troupe {

class Accelerator;

/// Low-rank adapters (Hu et al., arXiv 2106.09685), by the names and defaults of PEFT's LoraConfig.
struct LoraConfig {
  std::int64_t r = 8;
  double lora_alpha = 8;
  double lora_dropout = 0;
  /// Names of linear layers: the whole name or its end after a dot ("q_proj", "self_attn.q_proj").
  std::vector<std::string> target_modules{"q_proj", "v_proj"};
  /// Instead of target_modules: "all-linear", every linear layer but the head; or a regular expression that a layer's whole name
  /// matches ("model\\.layers\\.[0-3]\\..*_proj").
  std::string target_pattern{};
  std::string bias = "none";  ///< which biases are trained too: "lora_only", those of adapted layers; "all"
  /// Other modules that are trained whole and saved with the adapter, by name as in target_modules: "lm_head", "embed_tokens".
  std::vector<std::string> modules_to_save{};
  bool use_rslora = false;           ///< scaling is alpha / √r instead of alpha / r (Kalajdzievski, arXiv 2312.03732)
  bool ensure_weight_tying = false;  ///< modules_to_save of tied embedding and head: they stay one tensor
  std::string base_model_name_or_path{};

  [[nodiscard]] double scaling() const;
  /// Reads adapter_config.json, or a LoRA JSON as the Ray template has it. A key that asks for something not built here (DoRA,
  /// rank_pattern …) is refused by name. Throws Failure{FileNotFound, FileCorrupt, InvalidConfig, Unsupported}.
  [[nodiscard]] static LoraConfig from_file(const std::filesystem::path& json);
  /// Writes it as PEFT does.
  void save(const std::filesystem::path& adapter_config_json) const;
  /// Throws Failure{InvalidConfig}.
  void check(const std::string& where = "LoraConfig") const;
};

struct ParameterCount {
  std::int64_t trained = 0;
  std::int64_t all = 0;
};

/// Freezes `model` and gives its targets adapters: A from kaiming-uniform by `rank_generator()`, B zero, so that nothing changes
/// yet. In a model that is only adapters then, checkpoints hold no base, but its fingerprint (`Unit::set_frozen_base`). Call it
/// before `prepare`, and before the optimizer is made: `AdamW{trainable_parameters(*model), …}`.
/// Throws Failure{InvalidConfig} that names a target no layer has, with the nearest name there is; {InvalidArgument} on a model
/// that has adapters already.
void apply_lora(Unit& model, const LoraConfig& config);

/// Writes adapter_config.json and adapter_model.safetensors as PEFT does, into `directory`. Of a model that an Accelerator
/// prepared: collective, only adapters are gathered, and rank 0 writes. Throws Failure{StorageUnavailable}.
void save_adapter(const Unit& model, const std::filesystem::path& directory);
void save_adapter(Accelerator& accelerator, const Unit& model, const std::filesystem::path& directory);

/// apply_lora and PEFT's values, from what save_adapter or PEFT wrote (safetensors). Everything is checked before the model is changed:
/// a tensor that is missing, unknown, or of another shape (an adapter of another base or rank) is named in
/// Failure{FileCorrupt}.
/// @param trainable false: adapters are frozen too, for use as they are.
void load_adapter(Unit& model, const std::filesystem::path& directory, bool trainable = true);

/// Adds scaling · B A to the weights of adapted layers, whose forward then costs what it did without; the weights before are
/// kept, and unmerge puts them back bit by bit. In fp32, rounded once. Not for a model that is sharded
/// (Failure{InvalidArgument}).
void merge_lora(Unit& model);
void unmerge_lora(Unit& model);
/// Merges, and forgets adapters and what was kept: a plain model again, all of it trainable.
void merge_and_unload(Unit& model);

/// The configuration of the adapters in `model`; nullptr: it has none.
[[nodiscard]] const LoraConfig* lora_config(const Unit& model);
/// Parameters that require a gradient, tied ones once, in the model's order.
[[nodiscard]] std::vector<at::Tensor> trainable_parameters(const torch::nn::Module& model);
/// Elements. Before `prepare`: sharded parameters have no size of their own.
[[nodiscard]] ParameterCount count_parameters(const torch::nn::Module& model);
/// What `apply_lora` will train by the formula: Σ r · (in + out) over the targets, trained biases, modules_to_save.
[[nodiscard]] std::int64_t lora_parameter_count(const Unit& model, const LoraConfig& config);

}  // namespace troupe

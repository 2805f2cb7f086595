#pragma once

#include <troupe/effective_config.hpp>

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace troupe {

namespace detail {
struct Document;
}

/// Accelerate's DeepSpeedPlugin: a DeepSpeed JSON configuration, or the few fields that stand for one. Field names as
/// there. Every key of DeepSpeed 0.19's ZeRO path is honoured, or refused by name with what to use instead; unknown keys,
/// keys without effect, duplicates, wrong types and ranges are Failure{InvalidConfig} with file, line, key and the nearest
/// name. Different on purpose: without `gradient_clipping` nothing is clipped (DeepSpeed: at 1.0), and gradients are
/// reduced in fp32 unless `communication_data_type` says otherwise; ConfigFacts::compat brings both back.
///
///     auto plugin = DeepSpeedPlugin::from_json("zero3.json");
///     auto config = plugin.resolve({.num_processes = 4, .batch_sizes = {16}, .hidden_sizes = {768}});
struct DeepSpeedPlugin {
  std::optional<int> zero_stage{};  ///< 0 to 3; default 2 without a file
  std::optional<int> gradient_accumulation_steps{};
  std::optional<double> gradient_clipping{};
  std::optional<std::string> offload_optimizer_device{};  ///< "none", "cpu", "nvme"
  std::optional<std::string> offload_param_device{};
  std::optional<std::string> offload_optimizer_nvme_path{};
  std::optional<std::string> offload_param_nvme_path{};
  std::optional<bool> zero3_init_flag{};
  std::optional<bool> zero3_save_16bit_model{};
  bool is_train_batch_min = true;  ///< an "auto" micro batch is the smallest of the loaders', else the largest

  /// A file, or JSON text that begins with '{'. Checks everything that does not depend on the program.
  [[nodiscard]] static DeepSpeedPlugin from_json(const std::string& path_or_text);
  /// `hf_ds_config` as a dictionary.
  [[nodiscard]] static DeepSpeedPlugin from_dict(const nlohmann::ordered_json& hf_ds_config);
  /// Settles every "auto" by Accelerate's formulas and checks the batch arithmetic. Fields above fill keys that are
  /// missing or "auto" in the file; one that contradicts the file is an error.
  [[nodiscard]] EffectiveConfig resolve(const ConfigFacts& facts = {}) const;

  /// Where fields came from when they were read elsewhere ("accelerate.yaml:deepspeed_config.zero_stage"), by field.
  std::map<std::string, std::string> origins{};
  std::shared_ptr<const detail::Document> hf_ds_config{};  ///< from_json's, from_dict's
};

}  // namespace troupe

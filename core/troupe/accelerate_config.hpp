#pragma once

#include <troupe/deepspeed_plugin.hpp>
#include <troupe/effective_config.hpp>
#include <troupe/fsdp_plugin.hpp>
#include <troupe/run_options.hpp>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// A file that `accelerate config` wrote, for one machine: distributed_type NO, MULTI_CPU, MULTI_GPU, DEEPSPEED or FSDP.
/// Unknown keys at any level (accelerate ignores nested ones), keys given twice, wrong types and what cannot be honoured
/// are Failure{InvalidConfig} with file, line, key and the nearest name.
struct AccelerateConfig {
  std::string file;
  std::string distributed_type;
  std::optional<std::string> mixed_precision;
  std::optional<int> num_processes;  ///< none: -1 or not there
  int num_machines = 1;
  std::optional<int> machine_rank;              ///< which of them this is, of `main_process_ip`'s: 0
  std::optional<std::string> main_process_ip;
  std::optional<int> main_process_port;
  bool use_cpu = false;
  bool debug = false;
  bool enable_cpu_affinity = false;
  std::optional<DeepSpeedPlugin> deepspeed_plugin;            ///< with DEEPSPEED
  std::optional<FullyShardedDataParallelPlugin> fsdp_plugin;  ///< with FSDP
  std::map<std::string, std::string> origins;  ///< "file:key" by name of the above
  std::vector<std::string> notes;

  /// A `deepspeed_config_file` that is no path from here is looked for beside the YAML file.
  [[nodiscard]] static AccelerateConfig from_yaml(const std::filesystem::path& file);
  /// `name` stands for the file in messages.
  [[nodiscard]] static AccelerateConfig from_text(const std::string& text, const std::string& name);
  /// What is in `facts` wins over the file, as flags of `accelerate launch` do.
  [[nodiscard]] EffectiveConfig resolve(ConfigFacts facts = {}) const;
};

/// What a TorchTrainer needs from such a file: Ray's AccelerateTrainer as a function.
struct AccelerateOptions {
  ScalingConfig scaling;   ///< num_workers, use_gpu, pin_threads; the rest as by default
  EffectiveConfig config;
};
/// Throws Failure{InvalidConfig} also when num_processes is nowhere, Failure{Unsupported} for more than one machine.
[[nodiscard]] AccelerateOptions accelerate_options(const std::filesystem::path& file, const ConfigFacts& facts = {});

}  // namespace troupe

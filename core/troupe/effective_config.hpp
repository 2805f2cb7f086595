#pragma once

#include <troupe/lr_schedule.hpp>
#include <troupe/sharding_options.hpp>

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// What a configuration's "auto" values and its checks need from the program. Leave out what is not known.
struct ConfigFacts {
  std::optional<int> num_processes{};        ///< data-parallel ranks
  int num_machines = 1;                    ///< hybrid sharding shards inside one
  std::vector<std::int64_t> batch_sizes{};   ///< of the prepared loaders, training and evaluation
  bool split_batches = false;              ///< those are of all ranks together
  std::optional<int> gradient_accumulation_steps{};  ///< the Accelerator's argument
  std::optional<std::string> mixed_precision{};      ///< the Accelerator's argument: "fp16", "bf16"; "no" leaves it to the file
  std::vector<std::int64_t> hidden_sizes{};  ///< of the model's config: hidden_size, or all of hidden_sizes
  std::optional<double> lr{};                ///< the optimizer's, as DummyOptim's
  std::optional<double> weight_decay{};
  std::optional<std::int64_t> num_warmup_steps{};  ///< as DummyScheduler's
  std::optional<std::int64_t> total_num_steps{};   ///< as DummyScheduler's: counted as one process would take them
  /// Upstream's surprises: DeepSpeed clips at 1.0 when nothing is said, and gradients are reduced in 16 bits.
  bool compat = false;
  /// An "auto" that these facts do not settle: an error, or (true) listed in EffectiveConfig::unresolved.
  bool partial = false;
};

/// An optimizer by a configuration file.
struct OptimizerConfig {
  std::string type;  ///< AdamW, Adam, SGD, Adagrad or Lion
  std::optional<double> lr;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double momentum = 0;  ///< SGD
  bool nesterov = false;
  double lr_decay = 0;  ///< Adagrad
};

/// How a gathered (FULL_STATE_DICT) state is handed out.
struct StateDictConfig {
  bool offload_to_cpu = true;
  bool rank0_only = true;  ///< the others get nothing
};

/// What a DeepSpeed, FSDP or accelerate configuration comes down to, and where every value came from.
struct EffectiveConfig {
  ShardingOptions sharding;
  std::string mixed_precision = "no";  ///< "no", "fp16", "bf16"
  std::optional<LossScale> loss_scale; ///< with fp16
  double gradient_clipping = 0;        ///< L2 norm; 0: none
  int gradient_accumulation_steps = 1;
  std::optional<std::int64_t> train_micro_batch_size_per_gpu;  ///< per rank
  std::optional<std::int64_t> train_batch_size;                ///< of an update, over all ranks
  std::optional<OptimizerConfig> optimizer;
  std::optional<LRScheduleConfig> scheduler;
  std::optional<int> num_processes;
  std::optional<std::int64_t> steps_per_print;
  bool gather_16bit_weights_on_model_save = false;
  std::string state_dict_type = "FULL_STATE_DICT";  ///< or SHARDED_STATE_DICT
  StateDictConfig state_dict_config;
  StateDictConfig optim_state_dict_config;
  bool debug = false;  ///< check before each collective that all ranks call the same one

  std::map<std::string, std::string> sources;  ///< by row name: "ds.json:zero_optimization.stage"; none: "default"
  std::vector<std::string> notes;              ///< what a user may not expect
  std::vector<std::string> unresolved;         ///< "auto" keys that need more facts, with what is missing
};

/// One line of the effective configuration.
struct ConfigRow {
  std::string name;
  std::string value;
  std::string source;
};

/// Every value in a fixed order, as text, with its source.
[[nodiscard]] std::vector<ConfigRow> rows(const EffectiveConfig& config);
/// The rows as an aligned table, then notes and what is unresolved: what a run prints.
[[nodiscard]] std::string to_text(const EffectiveConfig& config);
/// {"values": {name: {"value", "source"}}, "notes": […], "unresolved": […]}.
[[nodiscard]] nlohmann::ordered_json to_json(const EffectiveConfig& config);

}  // namespace troupe

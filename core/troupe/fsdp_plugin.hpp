#pragma once

#include <troupe/effective_config.hpp>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace troupe {

/// torch's MixedPrecision (version 1) and MixedPrecisionPolicy (version 2).
struct MixedPrecisionPolicy {
  std::optional<DType> param_dtype{};
  std::optional<DType> reduce_dtype{};
  std::optional<DType> buffer_dtype{};  ///< version 1
};

/// torch's CPUOffload and CPUOffloadPolicy: parameters, gradients and optimizer state wait in host memory.
struct CPUOffload {
  bool offload_params = false;
  bool pin_memory = true;
};

/// Accelerate's FullyShardedDataParallelPlugin: fields, versions and what each refuses as there. Different on purpose:
/// without `auto_wrap_policy` units are the modules called through TROUPE_UNIT (there: the whole model is one); with mixed
/// precision gradients are reduced in fp32 and buffers stay as they are unless the policy says otherwise, or
/// ConfigFacts::compat; communication is prefetched unless switched off.
struct FullyShardedDataParallelPlugin {
  int fsdp_version = 1;
  /// Version 1: FULL_SHARD (default), SHARD_GRAD_OP, NO_SHARD, HYBRID_SHARD, HYBRID_SHARD_ZERO2, or 1 to 5.
  std::optional<std::string> sharding_strategy{};
  /// Version 2: a boolean, default true. Version 1: a strategy's name.
  std::optional<std::variant<bool, std::string>> reshard_after_forward{};
  std::optional<std::string> backward_prefetch{};  ///< version 1: BACKWARD_PRE, NO_PREFETCH
  std::optional<bool> forward_prefetch{};          ///< version 1
  std::optional<MixedPrecisionPolicy> mixed_precision_policy{};  ///< none: by mixed_precision
  std::optional<std::string> auto_wrap_policy{};   ///< TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP, NO_WRAP
  std::vector<std::string> transformer_cls_names_to_wrap{};
  std::optional<std::int64_t> min_num_params{};
  CPUOffload cpu_offload{};
  std::optional<std::string> ignored_modules{};    ///< refused
  std::optional<std::string> state_dict_type{};    ///< FULL_STATE_DICT (version 1), SHARDED_STATE_DICT (version 2)
  StateDictConfig state_dict_config{};
  StateDictConfig optim_state_dict_config{};
  bool limit_all_gathers = true;
  std::optional<bool> use_orig_params{};           ///< version 1; parameters keep their shapes in any case
  std::optional<bool> sync_module_states{};        ///< version 1; ranks start from rank 0's weights in any case
  std::optional<bool> cpu_ram_efficient_loading{};
  bool activation_checkpointing = false;
  bool activation_checkpointing_offload = false;   ///< version 2, with activation_checkpointing

  /// Ranks that share one copy, when known otherwise (parallelism_config.dp_shard_size); 0: by the strategy.
  int shard_group_size = 0;
  /// Where fields came from when they were read from a file, by field name.
  std::map<std::string, std::string> origins{};

  /// Throws Failure{InvalidConfig} naming the field and its origin.
  [[nodiscard]] EffectiveConfig resolve(const ConfigFacts& facts = {}) const;
};

}  // namespace troupe

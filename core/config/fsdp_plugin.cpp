#include <troupe/fsdp_plugin.hpp>

#include "precision.hpp"

#include <troupe/config.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <cctype>

namespace troupe {

namespace {

using Plugin = FullyShardedDataParallelPlugin;

/// Resolves one plugin. One use.
class FsdpResolver {
 public:
  FsdpResolver(const Plugin& plugin, const ConfigFacts& facts) : plugin_(plugin), facts_(facts), out_(detail::from_facts(facts)) {}

  EffectiveConfig resolve() {
    if (plugin_.fsdp_version != 1 && plugin_.fsdp_version != 2) fail("fsdp_version", "must be 1 or 2, not " + std::to_string(plugin_.fsdp_version));
    if (plugin_.ignored_modules) fail("ignored_modules", "is not supported: every parameter is sharded; freeze those that should not train");
    if (!plugin_.limit_all_gathers) fail("limit_all_gathers", "cannot be false: one unit is gathered ahead and no more");
    two() ? version2() : version1();
    wrap();
    types();
    offload();
    state_dict();
    checkpointing();
    return std::move(out_);
  }

 private:
  [[nodiscard]] bool two() const { return plugin_.fsdp_version == 2; }

  [[nodiscard]] std::string origin(const std::string& field) const {
    const auto found = plugin_.origins.find(field);
    return found == plugin_.origins.end() ? "FullyShardedDataParallelPlugin." + field : found->second;
  }

  [[noreturn]] void fail(const std::string& field, const std::string& text) const {
    throw Failure{Errc::InvalidConfig, origin(field) + ": " + text};
  }

  void note(const std::string& field, const std::string& text) { out_.notes.push_back(origin(field) + ": " + text); }
  void from(const std::string& row, const std::string& field) { out_.sources[row] = origin(field); }

  /// The spelling of one of `words`, whatever the case of `given`.
  [[nodiscard]] std::string choice(const std::string& field, std::string given, const std::vector<std::string>& words) const {
    std::transform(given.begin(), given.end(), given.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    if (std::find(words.begin(), words.end(), given) != words.end()) return given;
    std::string list;
    for (const auto& word : words) list += " " + word;
    const auto nearest = nearest_name(given, words);
    fail(field, "must be one of" + list + ", not '" + given + "'" + (nearest.empty() ? "" : "; did you mean '" + nearest + "'?"));
  }

  [[nodiscard]] std::string strategy_named(const std::string& field, const std::string& given) const {
    const std::vector<std::string> names{"FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"};
    if (given.size() == 1 && given[0] >= '1' && given[0] <= '5') return names[static_cast<std::size_t>(given[0] - '1')];
    return choice(field, given, names);
  }

  void version1() {
    std::string field = "sharding_strategy";
    std::string name = "FULL_SHARD";
    if (plugin_.sharding_strategy) name = strategy_named(field, *plugin_.sharding_strategy);
    if (const auto& reshard = plugin_.reshard_after_forward) {
      if (std::holds_alternative<bool>(*reshard)) {
        fail("reshard_after_forward", "is a boolean, which only fsdp_version 2 takes; write a sharding strategy's name");
      }
      const auto other = strategy_named("reshard_after_forward", std::get<std::string>(*reshard));
      if (plugin_.sharding_strategy && other != name) fail("reshard_after_forward", other + " contradicts sharding_strategy " + name + "; keep one");
      if (!plugin_.sharding_strategy) field = "reshard_after_forward";
      name = other;
    }
    auto& sharding = out_.sharding;
    sharding.strategy = name == "NO_SHARD" ? ShardingStrategy::Replicate : ShardingStrategy::ShardParameters;
    sharding.reshard_after_forward = name == "FULL_SHARD" || name == "HYBRID_SHARD";
    if (plugin_.sharding_strategy || plugin_.reshard_after_forward) {
      from("strategy", field);
      from("reshard_after_forward", field);
    } else {
      out_.sources["strategy"] = out_.sources["reshard_after_forward"] = "default of FSDP 1: FULL_SHARD";
    }
    if (name.starts_with("HYBRID")) hybrid(field);
    prefetch();
  }

  void hybrid(const std::string& field) {
    if (facts_.num_machines < 2) {
      note(field, "shards inside a machine and replicates across; there is one machine, so all ranks share one copy");
    } else if (!facts_.num_processes || *facts_.num_processes % facts_.num_machines != 0) {
      fail(field, "needs num_processes that " + std::to_string(facts_.num_machines) + " machines share evenly");
    } else {
      out_.sharding.shard_group_size = *facts_.num_processes / facts_.num_machines;
    }
    from("shard_group_size", field);
  }

  void prefetch() {
    if (plugin_.backward_prefetch) {
      const auto name = choice("backward_prefetch", *plugin_.backward_prefetch, {"BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH"});
      if (name == "BACKWARD_POST") fail("backward_prefetch", "cannot be BACKWARD_POST; write BACKWARD_PRE (one unit ahead) or NO_PREFETCH");
      out_.sharding.backward_prefetch = name == "BACKWARD_PRE";
      from("backward_prefetch", "backward_prefetch");
    }
    if (plugin_.forward_prefetch) {
      out_.sharding.forward_prefetch = *plugin_.forward_prefetch;
      from("forward_prefetch", "forward_prefetch");
    }
    if (plugin_.use_orig_params == false && plugin_.origins.contains("use_orig_params")) note("use_orig_params", "parameters keep their shapes in any case");
    if (plugin_.sync_module_states == false) note("sync_module_states", "ranks start from rank 0's weights in any case");
  }

  void version2() {
    auto& sharding = out_.sharding;
    sharding.strategy = ShardingStrategy::ShardParameters;
    out_.sources["strategy"] = plugin_.origins.contains("fsdp_version") ? origin("fsdp_version") : "fsdp_version 2";
    if (const auto& reshard = plugin_.reshard_after_forward) {
      if (!std::holds_alternative<bool>(*reshard)) {
        fail("reshard_after_forward", "is '" + std::get<std::string>(*reshard) + "'; with fsdp_version 2 it must be true or false");
      }
      sharding.reshard_after_forward = std::get<bool>(*reshard);
      from("reshard_after_forward", "reshard_after_forward");
    }
    if (plugin_.forward_prefetch == true) fail("forward_prefetch", "is not for fsdp_version 2, which prefetches anyway; remove it");
    const std::string gone = "has no effect with fsdp_version 2";
    if (plugin_.forward_prefetch) note("forward_prefetch", gone + ", which prefetches anyway");
    if (plugin_.sharding_strategy) {
      (void)strategy_named("sharding_strategy", *plugin_.sharding_strategy);
      note("sharding_strategy", gone + "; reshard_after_forward decides");
    }
    if (plugin_.backward_prefetch) note("backward_prefetch", gone + ", which prefetches anyway");
    if (plugin_.use_orig_params) note("use_orig_params", gone);
    if (plugin_.sync_module_states) note("sync_module_states", gone);
  }

  void wrap() {
    if (plugin_.shard_group_size > 0) {
      out_.sharding.shard_group_size = plugin_.shard_group_size;
      from("shard_group_size", "shard_group_size");
    }
    auto& wrap = out_.sharding.wrap;
    const auto name = plugin_.auto_wrap_policy
                          ? choice("auto_wrap_policy", *plugin_.auto_wrap_policy, {"TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"})
                          : std::string{};
    from("wrap", "auto_wrap_policy");
    if (name.empty()) {
      out_.sources["wrap"] = "default (FSDP takes the whole model as one unit)";
    } else if (name == "NO_WRAP") {
      wrap.kind = WrapPolicy::Kind::NoWrap;
      note("auto_wrap_policy", "NO_WRAP gathers the whole model at once; units by TROUPE_UNIT need far less memory");
    } else if (name == "SIZE_BASED_WRAP") {
      if (!plugin_.min_num_params) fail("auto_wrap_policy", "SIZE_BASED_WRAP needs min_num_params");
      if (*plugin_.min_num_params < 1) fail("min_num_params", "must be at least 1");
      wrap.kind = WrapPolicy::Kind::BySize;
      wrap.min_num_params = *plugin_.min_num_params;
      from("wrap", "min_num_params");
    } else if (!plugin_.transformer_cls_names_to_wrap.empty()) {
      wrap.kind = WrapPolicy::Kind::ByClass;
      wrap.classes = plugin_.transformer_cls_names_to_wrap;
      from("wrap", "transformer_cls_names_to_wrap");
    }
    if (name != "SIZE_BASED_WRAP" && plugin_.min_num_params) note("min_num_params", "has no effect without SIZE_BASED_WRAP");
    if (name != "TRANSFORMER_BASED_WRAP" && !plugin_.transformer_cls_names_to_wrap.empty()) {
      note("transformer_cls_names_to_wrap", "has no effect without TRANSFORMER_BASED_WRAP");
    }
    if (plugin_.cpu_ram_efficient_loading) note("cpu_ram_efficient_loading", "ranks of a host share the mapped files in any case; no effect");
  }

  void types() {
    auto& sharding = out_.sharding;
    const bool low = out_.mixed_precision != "no";
    if (const auto& policy = plugin_.mixed_precision_policy) {
      sharding.param_dtype = policy->param_dtype;
      sharding.reduce_dtype = policy->reduce_dtype;
      sharding.buffer_dtype = policy->buffer_dtype;
      if (two() && policy->buffer_dtype) fail("mixed_precision_policy", "buffer_dtype is not for fsdp_version 2");
      for (const char* row : {"param_dtype", "reduce_dtype", "buffer_dtype"}) from(row, "mixed_precision_policy");
      return;
    }
    if (!low || sharding.strategy == ShardingStrategy::Replicate) return;
    const auto low_dtype = detail::dtype_named(out_.mixed_precision);
    sharding.param_dtype = low_dtype;
    out_.sources["param_dtype"] = "mixed_precision " + out_.mixed_precision;
    out_.sources["reduce_dtype"] = "default (FSDP reduces in " + out_.mixed_precision + ")";
    if (!facts_.compat) return;
    sharding.reduce_dtype = low_dtype;
    out_.sources["reduce_dtype"] = "compat: as param_dtype";
    if (!two()) {
      sharding.buffer_dtype = low_dtype;
      out_.sources["buffer_dtype"] = "compat: as param_dtype";
    }
  }

  void offload() {
    if (!plugin_.cpu_offload.offload_params) return;
    auto& sharding = out_.sharding;
    if (sharding.strategy == ShardingStrategy::Replicate) fail("cpu_offload", "needs a strategy that shards; NO_SHARD does not");
    sharding.offload_params.place = sharding.offload_optimizer.place = Offload::Place::Host;
    sharding.offload_params.pin_memory = sharding.offload_optimizer.pin_memory = plugin_.cpu_offload.pin_memory;
    from("offload_params", "cpu_offload");
    from("offload_optimizer", "cpu_offload");
  }

  void state_dict() {
    out_.state_dict_type = two() ? "SHARDED_STATE_DICT" : "FULL_STATE_DICT";
    out_.sources["state_dict_type"] = "default of FSDP " + std::to_string(plugin_.fsdp_version);
    if (plugin_.state_dict_type) {
      const auto name = choice("state_dict_type", *plugin_.state_dict_type, {"FULL_STATE_DICT", "SHARDED_STATE_DICT", "LOCAL_STATE_DICT"});
      if (name == "LOCAL_STATE_DICT") fail("state_dict_type", "LOCAL_STATE_DICT is not supported; write SHARDED_STATE_DICT");
      out_.state_dict_type = name;
      from("state_dict_type", "state_dict_type");
    }
    out_.state_dict_config = plugin_.state_dict_config;
    out_.optim_state_dict_config = plugin_.optim_state_dict_config;
    const auto changed = [](const StateDictConfig& c) { return !c.offload_to_cpu || !c.rank0_only; };
    if (changed(plugin_.state_dict_config)) from("state_dict_config", "state_dict_config");
    if (changed(plugin_.optim_state_dict_config)) from("optim_state_dict_config", "optim_state_dict_config");
  }

  void checkpointing() {
    if (plugin_.activation_checkpointing_offload && !plugin_.activation_checkpointing) {
      fail("activation_checkpointing_offload", "needs activation_checkpointing");
    }
    if (plugin_.activation_checkpointing_offload && !two()) fail("activation_checkpointing_offload", "needs fsdp_version 2");
    out_.sharding.activation_checkpointing = plugin_.activation_checkpointing;
    out_.sharding.activation_checkpointing_offload = plugin_.activation_checkpointing_offload;
    if (plugin_.activation_checkpointing) from("activation_checkpointing", "activation_checkpointing");
  }

  const Plugin& plugin_;
  const ConfigFacts& facts_;
  EffectiveConfig out_;
};

}  // namespace

EffectiveConfig FullyShardedDataParallelPlugin::resolve(const ConfigFacts& facts) const { return FsdpResolver{*this, facts}.resolve(); }

}  // namespace troupe

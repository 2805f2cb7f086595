// Every key of DeepSpeed 0.19's JSON on the ZeRO path, and what becomes of it here.
#include "deepspeed_keys.hpp"

#include <array>

namespace troupe::detail {

namespace {

using enum Fate;

constexpr KeyRule top[] = {
    {"train_batch_size"},
    {"train_micro_batch_size_per_gpu"},
    {"gradient_accumulation_steps"},
    {"gradient_clipping"},
    {"steps_per_print"},
    {"optimizer"},
    {"scheduler"},
    {"fp16"},
    {"bf16"},
    {"zero_optimization"},
    {"communication_data_type"},
    {"data_types"},
    {"bfloat16", Default, "write 'bf16'", "[]"},
    {"wall_clock_breakdown", Default, "time a step with Accelerator::profile", "[false]"},
    {"memory_breakdown", Default, "read the run's memory account", "[false]"},
    {"dump_state", Default, "the effective configuration is always printed; remove it", "[false]"},
    {"prescale_gradients", Default, "gradients are averaged in fp32, which does not overflow; remove it", "[false]"},
    {"gradient_predivide_factor", Default, "gradients are averaged in fp32, which does not overflow; remove it", "[1]"},
    {"gradient_allreduce_op", Default, "multiply the loss by the number of ranks for a sum", R"(["mean"])"},
    {"seq_parallel_communication_data_type", Default, "there is no sequence parallelism; remove it", "[]"},
    {"disable_allgather", Default, "parameters are always gathered as one; remove it", "[false]"},
    {"zero_allow_untested_optimizer", Default, "", "[true, false]", "every optimizer can be sharded; no effect"},
    {"zero_force_ds_cpu_optimizer", Default, "", "[true, false]", "offloaded state is always updated by Troupe's own optimizer; no effect"},
    {"managed_gradient_accumulation", Default, "use Accelerator::no_sync for windows of your own", "[true]"},
    {"disable_python_gc", Default, "there is no Python here; remove it", "[false]"},
    {"dataloader_drop_last", Default, "set drop_last of the DataLoader", "[false]"},
    {"sequence_parallel_size", Default, "there is no sequence parallelism; remove it", "[1]"},
    {"use_data_before_expert_parallelism", Default, "there is no expert parallelism; remove it", "[false]"},
    {"log_level", Default, "remove it", "[]"},
    {"hybrid_engine", Default, "there is no generation engine; remove it", R"([{}, {"enabled": false}])"},
    {"data_efficiency", Default, "sample in the DataLoader", R"([{}, {"enabled": false}])"},
    {"pipeline", Default, "there is no pipeline parallelism; remove it", "[{}]"},
    {"compile", Default, "C++ models are compiled already; remove it", R"([{}, {"disable": true}])"},
    {"torch_autocast"},
    {"tensor_parallel"},
    {"checkpoint"},
    {"aio"},
    {"activation_checkpointing"},
    {"flops_profiler"},
    {"comms_logger"},
    {"tensorboard"},
    {"csv_monitor"},
    {"wandb"},
    {"comet"},
    {"amp", Removed, "write 'bf16' or 'fp16'"},
    {"nebula", Removed, "checkpoints are written in the background by CheckpointConfig"},
    {"compression_training", Removed, "remove it"},
    {"quantize_training", Removed, "remove it"},
    {"sparse_gradients", Removed, "gradients are dense; remove it"},
    {"eigenvalue", Removed, "remove it"},
    {"sparse_attention", Removed, "write it in the model"},
    {"elasticity", Removed, "checkpoints load on any number of ranks; set FailureConfig::max_failures"},
    {"graph_harvesting", Removed, "remove it"},
    {"curriculum_learning", Removed, "order the samples in the DataLoader"},
    {"progressive_layer_drop", Removed, "write it in the model"},
};

constexpr std::string_view only_stage3 = "only with stage 3";

constexpr KeyRule zero[] = {
    {"stage"},
    {"reduce_bucket_size", Honoured, "only with stages 1 to 3"},
    {"sub_group_size", Honoured, "only with offload_optimizer"},
    {"offload_optimizer", Honoured, "only with stages 1 to 3"},
    {"offload_param", Honoured, only_stage3},
    {"stage3_prefetch_bucket_size", Honoured, only_stage3},
    {"stage3_param_persistence_threshold", Honoured, only_stage3},
    {"stage3_gather_16bit_weights_on_model_save", Honoured, only_stage3},
    {"stage3_allgather_sequential", Honoured, only_stage3},
    {"overlap_comm", Default, "communication always overlaps, with the same numbers; remove it", "[true]",
     "communication always overlaps; no effect"},
    {"contiguous_gradients", Default, "gradients are always reduced from contiguous buckets; remove it", "[true]",
     "gradients are always reduced from contiguous buckets; no effect"},
    {"round_robin_gradients", Default, "", "[true, false]", "shards are equal whatever the order; no effect"},
    {"reduce_scatter", Default, "a true reduce-scatter is always used; remove it", "[true]"},
    {"use_multi_rank_bucket_allreduce", Default, "a true reduce-scatter is always used; remove it", "[true]"},
    {"allgather_partitions", Dead, "parameters are always gathered as one"},
    {"allgather_bucket_size", Dead, "parameters are always gathered as one"},
    {"legacy_stage1", Dead},
    {"compute_grad_norm", Default, "the norm is computed when gradients are clipped; remove it", "[true]"},
    {"load_from_fp32_weights", Default, "checkpoints always hold the fp32 weights; remove it", "[true]"},
    {"elastic_checkpoint", Default, "every checkpoint loads on any number of ranks; remove it", "[false]"},
    {"ignore_unused_parameters", Default, "parameters may always be without a gradient; remove it", "[true]"},
    {"parameter_alignment", Default, "remove it", "[false]"},
    {"zenflow", Default, "use offload_optimizer alone", "[]"},
    {"stage3_model_persistence_threshold", Default, "set stage3_param_persistence_threshold", "[9223372036854775807]"},
    {"stage3_max_live_parameters", Default, "one unit is gathered ahead and no more; write smaller units with TROUPE_UNIT",
     "[1000000000]", "one unit is gathered ahead and no more; no effect"},
    {"stage3_max_reuse_distance", Default, "a unit is freed after each use; write smaller or larger units with TROUPE_UNIT",
     "[1000000000]", "a unit is freed after each use; no effect"},
    {"stage3_module_granularity_threshold", Default, "write larger units with TROUPE_UNIT", "[0]"},
    {"stage3_use_all_reduce_for_fetch_params", Default, "parameters are always gathered; remove it", "[false]"},
    {"leaf_module", Default, "make that module a unit with TROUPE_UNIT", "[{}]"},
    {"zero_hpz_partition_size", Default, "use FullyShardedDataParallelPlugin with HYBRID_SHARD", "[1]"},
    {"zero_quantized_weights", Default, "parameters are gathered unquantized; remove it", "[false]"},
    {"zero_quantized_nontrainable_weights", Default, "parameters are gathered unquantized; remove it", "[false]"},
    {"zero_quantized_gradients", Default, "compress gradients with a communication hook", "[false]"},
    {"memory_efficient_linear", Default, "gathered weights are never kept for backward; remove it", "[true]"},
    {"pipeline_loading_checkpoint", Default, "remove it", "[false]"},
    {"override_module_apply", Default, "remove it", "[true]"},
    {"log_trace_cache_warnings", Default, "there is no trace; remove it", "[false]"},
    {"enable_sanity_checks", Default, "collectives that differ are found in debug mode", "[false]"},
    {"save_muon_momentum_buffer_in_memory", Default, "there is no Muon; remove it", "[false]"},
    {"cpu_offload", Default, "write 'offload_optimizer': {'device': 'cpu'}", "[]"},
    {"cpu_offload_param", Default, "write 'offload_param': {'device': 'cpu'}", "[]"},
    {"cpu_offload_params", Default, "write 'offload_param': {'device': 'cpu'}", "[]"},
    {"cpu_offload_use_pin_memory", Default, "write 'pin_memory' in offload_optimizer or offload_param", "[]"},
    {"stage3_gather_fp16_weights_on_model_save", Default, "write 'stage3_gather_16bit_weights_on_model_save'", "[]"},
    {"mics_shard_size", Removed, "use FullyShardedDataParallelPlugin with HYBRID_SHARD"},
    {"mics_hierarchical_params_gather", Removed, "use FullyShardedDataParallelPlugin with HYBRID_SHARD"},
    {"zeropp_loco_param", Removed, "compress gradients with a communication hook"},
};

constexpr KeyRule offload_optimizer[] = {
    {"device"},
    {"nvme_path"},
    {"buffer_count"},
    {"pin_memory"},
    {"pipeline_read", Default, "reading and writing always overlap the update; remove it", "[true, false]",
     "reading always overlaps the update; no effect"},
    {"pipeline_write", Default, "reading and writing always overlap the update; remove it", "[true, false]",
     "writing always overlaps the update; no effect"},
    {"fast_init", Default, "remove it", "[false]"},
    {"ratio", Default, "all of the state is offloaded", "[1]"},
    {"super_offload", Default, "remove it", "[false]"},
    {"cpuadam_cores_perc", Default, "set ScalingConfig::cpus_per_worker", "[0.8]"},
};

constexpr KeyRule offload_param[] = {
    {"device"},
    {"nvme_path"},
    {"buffer_count"},
    {"buffer_size"},
    {"pin_memory"},
    {"max_in_cpu", Default, "nothing stays in host memory with 'nvme'; use 'cpu' for that", "[1000000000]"},
};

constexpr KeyRule fp16[] = {
    {"enabled"},
    {"loss_scale"},
    {"initial_scale_power"},
    {"loss_scale_window"},
    {"hysteresis"},
    {"consecutive_hysteresis"},
    {"min_loss_scale"},
    {"auto_cast", Default, "", "[true, false]", "a unit's inputs are cast to its parameters' type in any case; no effect"},
    {"fp16_master_weights_and_grads", Default, "master weights are fp32; remove it", "[false]"},
};

constexpr KeyRule bf16[] = {
    {"enabled"},
    {"immediate_grad_update", Default, "remove it", "[true, false]", "gradients are added up in fp32 as they come; no effect"},
    {"check_grad_overflow", Default, "ranks always agree on gradients that are not finite; remove it", "[true]"},
    {"bf16_master_weights_and_grads", Default, "master weights are fp32; remove it", "[false]"},
    {"bf16_optimizer_states", Default, "optimizer state is fp32; remove it", "[false]"},
};

constexpr KeyRule data_types[] = {
    {"grad_accum_dtype", Default, "gradients are added up in fp32", R"(["fp32"])"},
    {"param_dtype"},
    {"buffer_dtype"},
    {"keep_in_fp32_modules", Default, "masters of all parameters are fp32; remove it", R"(["auto"])"},
};

constexpr KeyRule optimizer[] = {{"type"}, {"params"}, {"legacy_fusion", Default, "remove it", "[false]"}};
constexpr KeyRule scheduler[] = {{"type"}, {"params"}};

constexpr KeyRule torch_autocast[] = {
    {"enabled", Default, "use 'bf16' or 'fp16', or mixed_precision", "[false]"}, {"dtype"}, {"lower_precision_safe_modules"}};
constexpr KeyRule tensor_parallel[] = {{"autotp_size", Default, "there is no tensor parallelism; remove it", "[0, 1]"}};
constexpr KeyRule checkpoint[] = {
    {"tag_validation", Default, "a checkpoint is always checked", R"(["WARN", "Warn", "warn"])"},
    {"load_universal", Default, "", "[true, false]", "every checkpoint is universal; no effect"},
    {"use_node_local_storage", Default, "set RunConfig::storage_path", "[false]"},
    {"parallel_write", Default, "all ranks always write; remove it", R"([{}, {"pipeline_stage": false}])"},
    {"checkpoint_serialization", Default, "remove it", "[true]"},
    {"writer", Default, "all ranks always write, in the background; remove it", "[{}]"},
};
constexpr KeyRule aio[] = {
    {"block_size", Default, "files are read and written in chunks of sub_group_size; remove it", "[1048576]"},
    {"queue_depth", Default, "set buffer_count of offload_optimizer or offload_param", "[8]"},
    {"intra_op_parallelism", Default, "remove it", "[1]"},
    {"thread_count", Default, "remove it", "[1]"},
    {"single_submit", Default, "remove it", "[false]"},
    {"overlap_events", Default, "remove it", "[true]"},
    {"use_gds", Default, "remove it", "[false]"},
};
constexpr std::string_view own_checkpointing = "set ShardingOptions::activation_checkpointing, or fsdp_activation_checkpointing";
constexpr KeyRule activation_checkpointing[] = {
    {"partition_activations", Default, own_checkpointing, "[false]"},
    {"number_checkpoints", Default, own_checkpointing, "[]"},
    {"contiguous_memory_optimization", Default, own_checkpointing, "[false]"},
    {"cpu_checkpointing", Default, own_checkpointing, "[false]"},
    {"synchronize_checkpoint_boundary", Default, own_checkpointing, "[false]"},
    {"profile", Default, own_checkpointing, "[false]"},
};
constexpr KeyRule flops_profiler[] = {
    {"enabled", Default, "time a step with Accelerator::profile", "[false]"}, {"recompute_fwd_factor"}, {"profile_step"},
    {"module_depth"}, {"top_modules"}, {"detailed"}, {"output_file"}};
constexpr KeyRule comms_logger[] = {
    {"enabled", Default, "read the flight recorder", "[false]"}, {"verbose"}, {"prof_all"}, {"debug"}, {"prof_ops"}};
constexpr KeyRule tracker[] = {
    {"enabled", Default, "report metrics with TrainContext::report, which keeps them in reports.jsonl", "[false]"},
    {"output_path"}, {"job_name"}, {"team"}, {"group"}, {"project"}, {"workspace"}, {"experiment_name"}, {"samples_log_interval"},
    {"api_key"}, {"experiment_key"}, {"online"}, {"mode"}};

struct Table {
  std::string_view path;
  std::span<const KeyRule> rules;
  bool resolved;  ///< its honoured keys are read when resolving; else they belong to something that is off
};

constexpr Table tables[] = {
    {"", top, true},
    {"zero_optimization", zero, true},
    {"zero_optimization.offload_optimizer", offload_optimizer, true},
    {"zero_optimization.offload_param", offload_param, true},
    {"fp16", fp16, true},
    {"bf16", bf16, true},
    {"data_types", data_types, true},
    {"optimizer", optimizer, true},
    {"scheduler", scheduler, true},
    {"torch_autocast", torch_autocast, false},
    {"tensor_parallel", tensor_parallel, false},
    {"checkpoint", checkpoint, false},
    {"aio", aio, false},
    {"activation_checkpointing", activation_checkpointing, false},
    {"flops_profiler", flops_profiler, false},
    {"comms_logger", comms_logger, false},
    {"tensorboard", tracker, false},
    {"csv_monitor", tracker, false},
    {"wandb", tracker, false},
    {"comet", tracker, false},
};

/// Stage 3 fields may be written without their prefix, as in the guide's dictionary.
constexpr std::string_view prefixed[] = {"prefetch_bucket_size",         "param_persistence_threshold",
                                         "model_persistence_threshold",  "max_live_parameters",
                                         "max_reuse_distance",           "gather_16bit_weights_on_model_save",
                                         "module_granularity_threshold", "use_all_reduce_for_fetch_params",
                                         "allgather_sequential"};

void add_prefixes(Document& document) {
  const auto zero_section = document.root.find("zero_optimization");
  if (zero_section == document.root.end() || !zero_section->is_object()) return;
  for (const auto name : prefixed) {
    const std::string plain{name};
    const auto found = zero_section->find(plain);
    if (found == zero_section->end()) continue;
    const auto full = "stage3_" + plain;
    const auto plain_path = "zero_optimization." + plain;
    if (zero_section->contains(full)) document.fail(plain_path, "is the same key as '" + full + "'; keep one");
    const auto value = *found;
    zero_section->erase(plain);
    (*zero_section)[full] = value;
    const auto path = "zero_optimization." + full;
    document.origins[path] = document.origin(plain_path);
    if (const auto line = document.lines.find(plain_path); line != document.lines.end()) document.lines[path] = line->second;
  }
}

}  // namespace

void check_deepspeed_keys(Document& document, std::vector<std::string>& notes) {
  add_prefixes(document);
  for (const auto& table : tables) check_keys(document, std::string{table.path}, table.rules, notes);
}

void check_deepspeed_read(const Document& document, const std::set<std::string>& read) {
  auto known = read;
  for (const auto& table : tables) {
    if (!table.resolved) known.insert(std::string{table.path});
  }
  for (const auto& table : tables) {
    if (table.resolved) check_all_read(document, std::string{table.path}, table.rules, known);
  }
}

}  // namespace troupe::detail

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <troupe/accelerate_config.hpp>
#include <troupe/errors.hpp>

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

const std::filesystem::path data = TROUPE_TEST_CONFIG;

template <class Call>
std::string error_of(Call call) {
  try {
    (void)call();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "no error";
}

std::string yaml_error(const std::string& text) {
  return error_of([&] { return AccelerateConfig::from_text(text, "a.yaml").resolve({.partial = true}); });
}

EffectiveConfig resolved(const std::string& text, const ConfigFacts& facts = {}) { return AccelerateConfig::from_text(text, "a.yaml").resolve(facts); }

TEST(AccelerateConfig, ReadsMultiGpu) {
  const auto options = accelerate_options(data / "multi_gpu.yaml");
  EXPECT_EQ(options.scaling.num_workers, 8);
  EXPECT_TRUE(options.scaling.use_gpu);
  EXPECT_FALSE(options.scaling.pin_threads);
  EXPECT_EQ(options.config.sharding.strategy, ShardingStrategy::Replicate);
  EXPECT_EQ(options.config.mixed_precision, "bf16");
  EXPECT_EQ(options.config.sharding.param_dtype, std::nullopt);
  EXPECT_EQ(options.config.sources.at("mixed_precision"), (data / "multi_gpu.yaml").string() + ":mixed_precision");
  EXPECT_THAT(options.config.notes, Contains(HasSubstr("fp8_config: has no effect")));
}

TEST(AccelerateConfig, ReadsDeepSpeedFields) {
  const auto options = accelerate_options(data / "deepspeed.yaml");
  const auto& c = options.config;
  EXPECT_EQ(options.scaling.num_workers, 8);
  EXPECT_EQ(c.sharding.strategy, ShardingStrategy::ShardParameters);
  EXPECT_EQ(c.gradient_clipping, 1.0);
  EXPECT_EQ(c.sharding.param_dtype, DType::BF16);
  EXPECT_TRUE(c.gather_16bit_weights_on_model_save);
  EXPECT_EQ(c.sources.at("gradient_clipping"), (data / "deepspeed.yaml").string() + ":deepspeed_config.gradient_clipping");
  EXPECT_EQ(c.sources.at("mixed_precision"), (data / "deepspeed.yaml").string() + ":mixed_precision");
}

TEST(AccelerateConfig, FindsTheDeepSpeedFileBesideIt) {
  const auto options = accelerate_options(data / "deepspeed_file.yaml", {.batch_sizes = {16}, .hidden_sizes = {64}});
  EXPECT_EQ(options.config.train_batch_size, 64);
  EXPECT_EQ(options.config.mixed_precision, "fp16");
  EXPECT_EQ(options.config.sharding.persistence_threshold, 640);
}

TEST(AccelerateConfig, ReadsFsdp) {
  const auto c = accelerate_options(data / "fsdp.yaml").config;
  EXPECT_EQ(c.sharding.strategy, ShardingStrategy::ShardParameters);
  EXPECT_TRUE(c.sharding.reshard_after_forward);
  EXPECT_EQ(c.sharding.wrap.kind, WrapPolicy::Kind::ByClass);
  EXPECT_EQ(c.sharding.wrap.classes, std::vector<std::string>{"LlamaDecoderLayer"});
  EXPECT_EQ(c.sharding.param_dtype, DType::BF16);
  EXPECT_EQ(c.sharding.reduce_dtype, std::nullopt);
  EXPECT_EQ(c.state_dict_type, "SHARDED_STATE_DICT");
  EXPECT_EQ(c.sharding.shard_group_size, 0);
  EXPECT_THAT(c.notes, Contains(AllOf(HasSubstr("fsdp_config.fsdp_backward_prefetch"), HasSubstr("no effect with fsdp_version 2"))));
}

TEST(AccelerateConfig, MakesAMeshOfReplicasAndShards) {
  const std::string head = "distributed_type: FSDP\nnum_processes: 8\nfsdp_config: {fsdp_version: 2}\nparallelism_config:\n";
  EXPECT_EQ(resolved(head + "  parallelism_config_dp_replicate_size: 2\n  parallelism_config_dp_shard_size: 4\n").sharding.shard_group_size, 4);
  EXPECT_THAT(yaml_error(head + "  parallelism_config_dp_replicate_size: 2\n  parallelism_config_dp_shard_size: 3\n"),
              HasSubstr("a.yaml:6: parallelism_config.parallelism_config_dp_shard_size: 3 x dp_replicate_size 2 is not num_processes 8"));
  EXPECT_THAT(yaml_error(head + "  parallelism_config_tp_size: 2\n"), HasSubstr("no tensor parallelism"));
}

TEST(AccelerateConfig, NamesFileLineKeyAndNearestName) {
  EXPECT_EQ(yaml_error("distributed_type: NO\nnum_proceses: 2\n"), "a.yaml:2: num_proceses: is unknown; did you mean 'num_processes'?");
  EXPECT_EQ(yaml_error("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forwrd: true\n"),
            "a.yaml:4: fsdp_config.fsdp_reshard_after_forwrd: is unknown; did you mean 'fsdp_reshard_after_forward'?");
  EXPECT_EQ(yaml_error("distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stag: 2\n"),
            "a.yaml:3: deepspeed_config.zero_stag: is unknown; did you mean 'zero_stage'?");
  EXPECT_EQ(yaml_error("distributed_type: NO\nuse_cpu: true\nuse_cpu: false\n"), "a.yaml:3: use_cpu: is given twice, first in line 2; keep one");
  EXPECT_THAT(yaml_error("num_processes: 2\n"), HasSubstr("distributed_type: is missing"));
  EXPECT_THAT(yaml_error("distributed_type: MULTI_GPUS\n"), HasSubstr("did you mean 'MULTI_GPU'?"));
  EXPECT_THAT(yaml_error("distributed_type: XLA\n"), HasSubstr("must be one of NO, MULTI_CPU, MULTI_GPU, DEEPSPEED, FSDP"));
}

TEST(AccelerateConfig, RejectsWhatAFileMustNotHold) {
  EXPECT_THAT(yaml_error("distributed_type: MULTI_CPU\nmixed_precision: fp8\n"), HasSubstr("a.yaml:2: mixed_precision: cannot be fp8 here; write bf16"));
  EXPECT_THAT(yaml_error("distributed_type: MULTI_CPU\nnum_processes: two\n"), HasSubstr("must be a whole number from -1 to 4096, not \"two\""));
  EXPECT_THAT(yaml_error("distributed_type: MULTI_GPU\ndeepspeed_config: {zero_stage: 2}\n"), HasSubstr("only with distributed_type DEEPSPEED"));
  EXPECT_THAT(yaml_error("distributed_type: MULTI_GPU\ngpu_ids: 0,1\n"), HasSubstr("CUDA_VISIBLE_DEVICES"));
  EXPECT_THAT(yaml_error("distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: x.json\n  zero_stage: 2\n"),
              HasSubstr("a.yaml:4: deepspeed_config.zero_stage: must not stand beside deepspeed_config_file"));
  EXPECT_THAT(yaml_error("distributed_type: DEEPSPEED\nmixed_precision: bf16\ndeepspeed_config: {deepspeed_config_file: x.json}\n"),
              HasSubstr("a.yaml:2: mixed_precision: must not stand beside"));
  EXPECT_THAT(yaml_error("distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: no_such.json}\n"), HasSubstr("there is no file no_such.json"));
  EXPECT_THAT(yaml_error("a: [1\n"), AllOf(HasSubstr("a.yaml:"), HasSubstr("no valid YAML")));
  EXPECT_THAT(yaml_error("- 1\n"), HasSubstr("must be a YAML mapping"));
  EXPECT_THAT(yaml_error(""), HasSubstr("must be a YAML mapping"));
  EXPECT_THAT(yaml_error("distributed_type: NO\n---\ndistributed_type: NO\n"), HasSubstr("2 YAML documents"));
}

TEST(AccelerateConfig, TakesAnUnquotedNoAndQuotedBooleans) {
  EXPECT_EQ(resolved("distributed_type: NO\nmixed_precision: no\n").mixed_precision, "no");
  EXPECT_EQ(resolved("distributed_type: 'NO'\nmixed_precision: 'no'\nuse_cpu: 'true'\n").num_processes, 1);
}

TEST(AccelerateConfig, LetsFactsWinOverTheFile) {
  const auto c = resolved("distributed_type: MULTI_CPU\nnum_processes: 4\nmixed_precision: bf16\n", {.num_processes = 2});
  EXPECT_EQ(c.num_processes, 2);
  EXPECT_EQ(c.sources.at("num_processes"), "argument");
  EXPECT_EQ(c.sources.at("mixed_precision"), "a.yaml:mixed_precision");
}

TEST(AccelerateConfig, IsBoundedWhateverAliasesAndDepthSay) {
  std::string bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c < 'j'; ++c) {
    bomb += std::string{c} + ": &" + c + " [";
    for (int i = 0; i < 10; ++i) bomb += (i > 0 ? ", *" : "*") + std::string{static_cast<char>(c - 1)};
    bomb += "]\n";
  }
  EXPECT_THAT(yaml_error(bomb), HasSubstr("more than 10000 values"));
  EXPECT_THAT(yaml_error("a: &a [*a]\n"), HasSubstr("a.yaml:1"));
  std::string deep(100, '[');
  EXPECT_THAT(yaml_error("a: " + deep + std::string(100, ']')), HasSubstr("deeper than 32 levels"));
  EXPECT_THAT(yaml_error("a: " + std::string(100'000, '[')), HasSubstr("a.yaml:1"));
  const auto large = std::filesystem::temp_directory_path() / ("troupe_large_" + std::to_string(::getpid()) + ".yaml");
  std::ofstream{large} << std::string((1 << 20) + 1, '#');
  EXPECT_THAT(error_of([&] { return AccelerateConfig::from_yaml(large); }), HasSubstr("larger than 1 MiB"));
  std::filesystem::remove(large);
  EXPECT_THAT(error_of([] { return AccelerateConfig::from_yaml("/no/such.yaml"); }), HasSubstr("/no/such.yaml: there is no such file"));
  EXPECT_THAT(error_of([] { return AccelerateConfig::from_yaml("/"); }), HasSubstr("is not a file"));
}

TEST(AccelerateOptions, NeedsRanksOnOneMachine) {
  const auto file = std::filesystem::temp_directory_path() / ("troupe_options_" + std::to_string(::getpid()) + ".yaml");
  const auto options = [&](const std::string& text, const ConfigFacts& facts = {}) {
    std::ofstream{file} << text;
    return accelerate_options(file, facts);
  };
  const auto cpu = options("distributed_type: MULTI_CPU\nnum_processes: 3\nenable_cpu_affinity: true\n");
  EXPECT_EQ(cpu.scaling.num_workers, 3);
  EXPECT_FALSE(cpu.scaling.use_gpu);
  EXPECT_TRUE(cpu.scaling.pin_threads);
  EXPECT_FALSE(options("distributed_type: FSDP\nnum_processes: 2\nuse_cpu: true\n").scaling.use_gpu);
  EXPECT_THAT(error_of([&] { return options("distributed_type: MULTI_GPU\nnum_processes: -1\n"); }), HasSubstr("num_processes: is missing"));
  EXPECT_EQ(options("distributed_type: MULTI_GPU\nnum_processes: -1\n", {.num_processes = 2}).scaling.num_workers, 2);
  EXPECT_THAT(error_of([&] { return options("distributed_type: MULTI_GPU\nnum_processes: 4\nnum_machines: 2\n"); }), HasSubstr("2 machines"));
  std::filesystem::remove(file);
}

TEST(FsdpPlugin, RunsTheGuidesSampleAsItStands) {
  FullyShardedDataParallelPlugin plugin{.state_dict_config = {.offload_to_cpu = false, .rank0_only = false},
                                        .optim_state_dict_config = {.offload_to_cpu = false, .rank0_only = false}};
  const auto c = plugin.resolve({.num_processes = 2});
  EXPECT_EQ(c.sharding.strategy, ShardingStrategy::ShardParameters);
  EXPECT_TRUE(c.sharding.reshard_after_forward);
  EXPECT_EQ(c.sharding.wrap.kind, WrapPolicy::Kind::Units);
  EXPECT_EQ(c.state_dict_type, "FULL_STATE_DICT");
  EXPECT_FALSE(c.state_dict_config.rank0_only);
  EXPECT_FALSE(c.optim_state_dict_config.offload_to_cpu);
}

TEST(FsdpPlugin, MapsEveryStrategyOfVersion1) {
  const auto sharding = [](const std::string& name) {
    return FullyShardedDataParallelPlugin{.sharding_strategy = name}.resolve({.num_processes = 8, .num_machines = 2}).sharding;
  };
  EXPECT_EQ(sharding("NO_SHARD").strategy, ShardingStrategy::Replicate);
  EXPECT_EQ(sharding("3").strategy, ShardingStrategy::Replicate);
  EXPECT_FALSE(sharding("SHARD_GRAD_OP").reshard_after_forward);
  EXPECT_TRUE(sharding("full_shard").reshard_after_forward);
  EXPECT_EQ(sharding("FULL_SHARD").shard_group_size, 0);
  EXPECT_EQ(sharding("HYBRID_SHARD").shard_group_size, 4);
  EXPECT_TRUE(sharding("HYBRID_SHARD").reshard_after_forward);
  EXPECT_FALSE(sharding("HYBRID_SHARD_ZERO2").reshard_after_forward);
}

TEST(FsdpPlugin, RefusesWhatAVersionDoesNotTake) {
  using Plugin = FullyShardedDataParallelPlugin;
  const auto error = [](const Plugin& plugin) { return error_of([&] { return plugin.resolve(); }); };
  EXPECT_THAT(error({.reshard_after_forward = true}), HasSubstr("reshard_after_forward: is a boolean, which only fsdp_version 2 takes"));
  EXPECT_THAT(error({.fsdp_version = 2, .reshard_after_forward = "FULL_SHARD"}), HasSubstr("must be true or false"));
  EXPECT_THAT(error({.fsdp_version = 2, .forward_prefetch = true}), HasSubstr("not for fsdp_version 2"));
  EXPECT_THAT(error({.fsdp_version = 2, .state_dict_type = "LOCAL_STATE_DICT"}), HasSubstr("write SHARDED_STATE_DICT"));
  EXPECT_THAT(error({.activation_checkpointing = true, .activation_checkpointing_offload = true}), HasSubstr("needs fsdp_version 2"));
  EXPECT_THAT(error({.fsdp_version = 2, .activation_checkpointing_offload = true}), HasSubstr("needs activation_checkpointing"));
  EXPECT_THAT(error({.fsdp_version = 3}), HasSubstr("must be 1 or 2"));
  EXPECT_THAT(error({.sharding_strategy = "FULL_SHRD"}), HasSubstr("did you mean 'FULL_SHARD'?"));
  EXPECT_THAT(error({.sharding_strategy = "FULL_SHARD", .reshard_after_forward = "NO_SHARD"}), HasSubstr("contradicts"));
  EXPECT_THAT(error({.backward_prefetch = "BACKWARD_POST"}), HasSubstr("BACKWARD_PRE"));
  EXPECT_THAT(error({.auto_wrap_policy = "SIZE_BASED_WRAP"}), HasSubstr("needs min_num_params"));
  EXPECT_THAT(error({.ignored_modules = "head"}), HasSubstr("not supported"));
  EXPECT_THAT(error({.sharding_strategy = "NO_SHARD", .cpu_offload = {.offload_params = true}}), HasSubstr("needs a strategy that shards"));
}

TEST(FsdpPlugin, ChoosesUnitsTypesAndOffload) {
  FullyShardedDataParallelPlugin plugin{.fsdp_version = 2, .reshard_after_forward = false, .auto_wrap_policy = "SIZE_BASED_WRAP", .min_num_params = 1000,
                                        .cpu_offload = {.offload_params = true, .pin_memory = false}, .activation_checkpointing = true,
                                        .activation_checkpointing_offload = true};
  auto c = plugin.resolve({.mixed_precision = "fp16"});
  EXPECT_FALSE(c.sharding.reshard_after_forward);
  EXPECT_EQ(c.sharding.wrap.kind, WrapPolicy::Kind::BySize);
  EXPECT_EQ(c.sharding.wrap.min_num_params, 1000);
  EXPECT_EQ(c.sharding.param_dtype, DType::F16);
  ASSERT_TRUE(c.loss_scale);
  EXPECT_EQ(c.loss_scale->policy, LossScale::Policy::GradScaler);
  EXPECT_EQ(c.sharding.offload_params.place, Offload::Place::Host);
  EXPECT_FALSE(c.sharding.offload_optimizer.pin_memory);
  EXPECT_TRUE(c.sharding.activation_checkpointing_offload);

  plugin.mixed_precision_policy = MixedPrecisionPolicy{.param_dtype = DType::BF16, .reduce_dtype = DType::F32};
  c = plugin.resolve();
  EXPECT_EQ(c.sharding.param_dtype, DType::BF16);
  EXPECT_EQ(c.sharding.reduce_dtype, DType::F32);

  const auto compat = FullyShardedDataParallelPlugin{}.resolve({.mixed_precision = "bf16", .compat = true}).sharding;
  EXPECT_EQ(compat.reduce_dtype, DType::BF16);
  EXPECT_EQ(compat.buffer_dtype, DType::BF16);
}

}  // namespace
}  // namespace troupe

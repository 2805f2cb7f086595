#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <troupe/deepspeed_plugin.hpp>
#include <troupe/errors.hpp>

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

const std::string data = TROUPE_TEST_CONFIG;

std::string error_of(const std::string& text, const ConfigFacts& facts = {.partial = true}) {
  try {
    (void)DeepSpeedPlugin::from_json(text).resolve(facts);
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::InvalidConfig);
    return failure.what();
  }
  return "no error";
}

/// A zero_optimization section in an otherwise sound file.
std::string zero(const std::string& keys) { return "{\"train_micro_batch_size_per_gpu\": 1, \"zero_optimization\": {" + keys + "}}"; }

EffectiveConfig resolve(const std::string& text, const ConfigFacts& facts) { return DeepSpeedPlugin::from_json(text).resolve(facts); }

TEST(DeepSpeedConfig, RunsTheGuidesDictionaryAsItStands) {
  const auto plugin = DeepSpeedPlugin::from_json(data + "/guide_deepspeed.json");
  const auto c = plugin.resolve({.num_processes = 4, .batch_sizes = {16, 32}, .gradient_accumulation_steps = 2, .hidden_sizes = {768}});
  EXPECT_EQ(c.sharding.strategy, ShardingStrategy::ShardParameters);
  EXPECT_EQ(c.sharding.offload_optimizer.place, Offload::Place::Host);
  EXPECT_FALSE(c.sharding.offload_optimizer.pin_memory);
  EXPECT_EQ(c.sharding.offload_params.place, Offload::Place::None);
  EXPECT_EQ(c.sharding.reduce_bucket_elements, 768 * 768);
  EXPECT_EQ(c.sharding.persistence_threshold, 7680);
  EXPECT_TRUE(c.sharding.forward_prefetch);
  EXPECT_EQ(c.sharding.param_dtype, DType::F16);
  EXPECT_EQ(c.sharding.reduce_dtype, std::nullopt);
  EXPECT_EQ(c.mixed_precision, "fp16");
  ASSERT_TRUE(c.loss_scale);
  EXPECT_EQ(c.loss_scale->policy, LossScale::Policy::DeepSpeed);
  EXPECT_EQ(c.loss_scale->growth_interval, 1000);
  EXPECT_EQ(c.loss_scale->hysteresis, 2);
  EXPECT_EQ(c.loss_scale->initial, 65536);
  EXPECT_EQ(c.loss_scale->minimum, 1);
  EXPECT_TRUE(c.gather_16bit_weights_on_model_save);
  EXPECT_EQ(c.gradient_accumulation_steps, 2);
  EXPECT_EQ(c.gradient_clipping, 1.0);
  EXPECT_EQ(c.train_micro_batch_size_per_gpu, 16);
  EXPECT_EQ(c.train_batch_size, 16 * 2 * 4);
  EXPECT_EQ(c.steps_per_print, 10);
  EXPECT_EQ(c.sources.at("persistence_threshold"), "auto: 10*hidden_size");
  EXPECT_EQ(c.sources.at("strategy"), data + "/guide_deepspeed.json:zero_optimization.stage");
  EXPECT_EQ(c.sources.at("gather_16bit_weights_on_model_save"),
            data + "/guide_deepspeed.json:zero_optimization.gather_16bit_weights_on_model_save");
  EXPECT_THAT(c.notes, Contains(AllOf(HasSubstr("round_robin_gradients"), HasSubstr("no effect"))));
  EXPECT_THAT(c.notes, Contains(AllOf(HasSubstr("overlap_comm"), HasSubstr("no effect"))));
  EXPECT_TRUE(c.unresolved.empty());
}

TEST(DeepSpeedConfig, TakesADictionaryInCode) {
  const auto plugin = DeepSpeedPlugin::from_dict({{"bf16", {{"enabled", true}}}, {"zero_optimization", {{"stage", 2}}}, {"train_batch_size", 8}});
  const auto c = plugin.resolve({.num_processes = 2});
  EXPECT_EQ(c.sharding.strategy, ShardingStrategy::ShardGradients);
  EXPECT_EQ(c.mixed_precision, "bf16");
  EXPECT_FALSE(c.loss_scale);
  EXPECT_EQ(c.train_micro_batch_size_per_gpu, 4);
  EXPECT_EQ(c.sources.at("strategy"), "hf_ds_config:zero_optimization.stage");
}

TEST(DeepSpeedConfig, NamesFileLineKeyAndNearestNameOfAnUnknownKey) {
  EXPECT_EQ(error_of("{\n \"zero_optimization\": {\n  \"stage\": 2,\n  \"reduce_buckt_size\": 5e8}}"),
            "DeepSpeed configuration:4: zero_optimization.reduce_buckt_size: is unknown; did you mean 'reduce_bucket_size'?");
  EXPECT_THAT(error_of(R"({"gradient_cliping": 1.0})"), HasSubstr("did you mean 'gradient_clipping'?"));
  EXPECT_THAT(error_of(R"({"fp16": {"enable": true}})"), HasSubstr("fp16.enable: is unknown; did you mean 'enabled'?"));
  EXPECT_THAT(error_of(R"({"optimizer": {"type": "AdamW", "params": {"beta": 1}}})"), HasSubstr("optimizer.params.beta: is unknown; did you mean 'betas'?"));
  EXPECT_THAT(error_of(R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 1}}})"), HasSubstr("warmup_steps: is unknown"));
}

TEST(DeepSpeedConfig, RejectsKeysGivenTwice) {
  EXPECT_EQ(error_of("{\"bf16\": {\n\"enabled\": true,\n\"enabled\": false}}"),
            "DeepSpeed configuration:3: bf16.enabled: is given twice, first in line 2; keep one");
  EXPECT_THAT(error_of(zero(R"("stage": 3, "max_live_parameters": 1e9, "stage3_max_live_parameters": 1e9)")), HasSubstr("is the same key as"));
}

TEST(DeepSpeedConfig, RejectsKeysWithoutEffect) {
  EXPECT_THAT(error_of(zero(R"("stage": 2, "allgather_partitions": true)")), HasSubstr("allgather_partitions: has no effect; remove it"));
  EXPECT_THAT(error_of(zero(R"("stage": 2, "stage3_param_persistence_threshold": 10)")),
              HasSubstr("has no effect in this configuration (only with stage 3); remove it"));
  EXPECT_THAT(error_of(zero(R"("stage": 0, "reduce_bucket_size": 10)")), HasSubstr("only with stages 1 to 3"));
  EXPECT_THAT(error_of(zero(R"("stage": 3, "sub_group_size": 10)")), HasSubstr("only with offload_optimizer"));
  EXPECT_THAT(error_of(zero(R"("stage": 2, "offload_param": {"device": "cpu"})")), HasSubstr("only with stage 3"));
}

TEST(DeepSpeedConfig, NamesTheReplacementOfRemovedKeys) {
  EXPECT_THAT(error_of(R"({"amp": {"enabled": true}})"), HasSubstr("amp: no longer exists in DeepSpeed; write 'bf16' or 'fp16'"));
  EXPECT_THAT(error_of(R"({"elasticity": {}})"), HasSubstr("FailureConfig::max_failures"));
  EXPECT_THAT(error_of(zero(R"("mics_shard_size": 4)")), HasSubstr("HYBRID_SHARD"));
  EXPECT_THAT(error_of(zero(R"("cpu_offload": true)")), HasSubstr("'offload_optimizer': {'device': 'cpu'}"));
  for (const char* key : {"nebula", "compression_training", "quantize_training", "sparse_gradients", "eigenvalue", "sparse_attention",
                          "graph_harvesting", "curriculum_learning", "progressive_layer_drop"}) {
    EXPECT_THAT(error_of("{\"" + std::string{key} + "\": {}}"), HasSubstr("no longer exists in DeepSpeed; ")) << key;
  }
}

TEST(DeepSpeedConfig, RefusesWhatItDoesNotDoAndTakesItsDefault) {
  EXPECT_THAT(error_of(R"({"wall_clock_breakdown": true})"), HasSubstr("cannot be true here; time a step with Accelerator::profile"));
  EXPECT_EQ(error_of(R"({"prescale_gradients": false, "gradient_predivide_factor": 1.0, "memory_breakdown": false})"), "no error");
  EXPECT_THAT(error_of(zero(R"("zero_quantized_gradients": true)")), HasSubstr("communication hook"));
  EXPECT_THAT(error_of(zero(R"("overlap_comm": false)")), HasSubstr("communication always overlaps"));
  EXPECT_THAT(error_of(R"({"tensorboard": {"enabled": true}})"), HasSubstr("TrainContext::report"));
  EXPECT_EQ(error_of(R"({"tensorboard": {"enabled": false, "output_path": "logs"}, "flops_profiler": {"enabled": false, "profile_step": 1}})"), "no error");
  EXPECT_THAT(error_of(R"({"flops_profiler": {"enabled": false, "profil_step": 1}})"), HasSubstr("did you mean 'profile_step'?"));
  EXPECT_THAT(error_of(R"({"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1.0}}})"), HasSubstr("write 'gradient_clipping'"));
  EXPECT_THAT(error_of(R"({"optimizer": {"type": "Lamb"}})"), HasSubstr("must be one of AdamW, Adam, SGD, Adagrad, Lion"));
}

TEST(DeepSpeedConfig, NamesWrongTypesAndRanges) {
  EXPECT_THAT(error_of(zero(R"("stage": 4)")), HasSubstr("zero_optimization.stage: must be a whole number from 0 to 3, not 4"));
  EXPECT_THAT(error_of(zero(R"("stage": "3")")), HasSubstr("must be a whole number from 0 to 3, not \"3\""));
  EXPECT_THAT(error_of(zero(R"("stage": 2, "reduce_bucket_size": 1.5)")), HasSubstr("a whole number"));
  EXPECT_THAT(error_of(zero(R"("stage": 2, "reduce_bucket_size": -5)")), HasSubstr("at least 1"));
  EXPECT_THAT(error_of(zero(R"("stage": 2, "reduce_bucket_size": 1e30)")), HasSubstr("a whole number"));
  EXPECT_THAT(error_of(R"({"fp16": {"enabled": 1}})"), HasSubstr("must be true or false, not 1"));
  EXPECT_THAT(error_of(R"({"fp16": true})"), HasSubstr("must be a section of keys, not true"));
  EXPECT_THAT(error_of(R"({"gradient_clipping": -1})"), HasSubstr("at least 0"));
  EXPECT_THAT(error_of(R"({"optimizer": {"type": "Adam", "params": {"betas": [0.9]}}})"), HasSubstr("a list of 2 numbers"));
  EXPECT_THAT(error_of(R"({"optimizer": {"type": "Adam", "params": {"betas": [0.9, 1.0]}}})"), HasSubstr("below 1"));
  EXPECT_THAT(error_of(zero(R"("stage": 3, "offload_optimizer": {"device": "gpu"})")), HasSubstr("must be one of none, cpu, nvme"));
  EXPECT_THAT(error_of(zero(R"("stage": 3, "offload_optimizer": {"device": "nvme"})")), HasSubstr("must name an existing directory"));
  EXPECT_THAT(error_of(R"({"communication_data_type": "int8"})"), HasSubstr("must be one of fp16, bf16, fp32"));
  EXPECT_THAT(error_of("{} []"), HasSubstr("no valid JSON"));
  EXPECT_THAT(error_of("{\n\"a\": }"), AllOf(HasSubstr("DeepSpeed configuration:2: "), HasSubstr("no valid JSON")));
}

TEST(DeepSpeedConfig, SettlesEveryAutoByAcceleratesFormula) {
  const std::string text = R"({
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    "fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
      "stage3_param_persistence_threshold": "auto", "stage3_gather_16bit_weights_on_model_save": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "betas": [0.9, 0.95]}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"}}})";
  ConfigFacts facts{.num_processes = 3, .batch_sizes = {8, 4}, .gradient_accumulation_steps = 5, .mixed_precision = "bf16",
                    .hidden_sizes = {32, 100, 64}, .lr = 2e-5, .weight_decay = 0.1, .num_warmup_steps = 0, .total_num_steps = 1000};
  auto c = resolve(text, facts);
  EXPECT_EQ(c.train_micro_batch_size_per_gpu, 4);
  EXPECT_EQ(c.train_batch_size, 4 * 5 * 3);
  EXPECT_EQ(c.gradient_accumulation_steps, 5);
  EXPECT_EQ(c.gradient_clipping, 1.0);
  EXPECT_EQ(c.mixed_precision, "bf16");
  EXPECT_EQ(c.sharding.reduce_bucket_elements, 10'000);
  EXPECT_EQ(c.sources.at("forward_prefetch"), "auto: 0.9*hidden_size squared = 9000");
  EXPECT_EQ(c.sharding.persistence_threshold, 1000);
  EXPECT_FALSE(c.gather_16bit_weights_on_model_save);
  EXPECT_EQ(c.optimizer->lr, 2e-5);
  EXPECT_EQ(c.optimizer->weight_decay, 0.1);
  EXPECT_EQ(c.optimizer->beta2, 0.95);
  EXPECT_EQ(c.scheduler->warmup_min_lr, 0);
  EXPECT_EQ(c.scheduler->warmup_max_lr, 2e-5);
  EXPECT_EQ(c.scheduler->warmup_num_steps, 1);
  EXPECT_EQ(c.scheduler->total_num_steps, 334);  // ceil(1000 / 3)

  facts.split_batches = true;
  facts.batch_sizes = {9, 30};
  c = resolve(text, facts);
  EXPECT_EQ(c.train_micro_batch_size_per_gpu, 3);
  EXPECT_EQ(c.scheduler->total_num_steps, 1000);
  facts.batch_sizes = {8};
  EXPECT_THAT(error_of(text, facts), HasSubstr("batches of 8 cannot be split evenly over 3 ranks"));
  facts.batch_sizes = {9, 30};
  auto plugin = DeepSpeedPlugin::from_json(text);
  plugin.is_train_batch_min = false;
  EXPECT_EQ(plugin.resolve(facts).train_micro_batch_size_per_gpu, 10);
}

TEST(DeepSpeedConfig, SaysWhatAnAutoNeeds) {
  const std::string text = R"({"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}})";
  EXPECT_THAT(error_of(text, {.num_processes = 2, .batch_sizes = {4}}), HasSubstr("is \"auto\", which needs the model's hidden_size"));
  EXPECT_THAT(error_of(text, {.num_processes = 2, .hidden_sizes = {4}}), HasSubstr("needs the batch size of a prepared DataLoader"));
  const auto open = resolve(text, {.partial = true}).unresolved;
  ASSERT_EQ(open.size(), 2u);
  EXPECT_THAT(open[0], HasSubstr("hidden_size"));
}

TEST(DeepSpeedConfig, ChecksAndCompletesTheBatchArithmetic) {
  const auto with = [](const std::string& keys, const ConfigFacts& facts) { return resolve("{" + keys + "}", facts); };
  const ConfigFacts two{.num_processes = 2};
  auto c = with(R"("train_batch_size": 24, "train_micro_batch_size_per_gpu": 4)", two);
  EXPECT_EQ(c.gradient_accumulation_steps, 3);
  c = with(R"("train_batch_size": 24, "gradient_accumulation_steps": 3)", two);
  EXPECT_EQ(c.train_micro_batch_size_per_gpu, 4);
  c = with(R"("train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3)", two);
  EXPECT_EQ(c.train_batch_size, 24);
  c = with(R"("train_batch_size": 24)", two);
  EXPECT_EQ(c.train_micro_batch_size_per_gpu, 12);
  EXPECT_EQ(c.gradient_accumulation_steps, 1);
  c = with(R"("train_micro_batch_size_per_gpu": 4)", two);
  EXPECT_EQ(c.train_batch_size, 8);
  EXPECT_THAT(error_of(R"({"train_batch_size": 25, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3})", two),
              HasSubstr("is 25, which is not train_micro_batch_size_per_gpu 4 x gradient_accumulation_steps 3 x num_processes 2 = 24"));
  EXPECT_THAT(error_of(R"({"train_batch_size": 25})", two), HasSubstr("is not"));
  EXPECT_THAT(error_of(R"({"train_micro_batch_size_per_gpu": 5})", {.num_processes = 2, .batch_sizes = {4, 8}}), HasSubstr("have batch_size 4 8"));
}

TEST(DeepSpeedConfig, ClipsOnlyWhenToldTo) {
  EXPECT_EQ(resolve("{}", {}).gradient_clipping, 0);
  EXPECT_THAT(resolve("{}", {}).sources.at("gradient_clipping"), HasSubstr("DeepSpeed clips at 1.0"));
  EXPECT_EQ(resolve("{}", {.compat = true}).gradient_clipping, 1);
  EXPECT_EQ(resolve(R"({"gradient_clipping": 0.5})", {.compat = true}).gradient_clipping, 0.5);
  EXPECT_EQ(resolve(R"({"gradient_clipping": 0})", {.compat = true}).gradient_clipping, 0);
}

TEST(DeepSpeedConfig, LetsThePrecisionOfFileAndArgumentNotDisagree) {
  const std::string half = R"({"fp16": {"enabled": true}, "zero_optimization": {"stage": 1}})";
  EXPECT_THAT(error_of(half, {.mixed_precision = "bf16"}), HasSubstr("fp16.enabled: is true, but mixed_precision is bf16"));
  EXPECT_EQ(resolve(half, {.mixed_precision = "no"}).mixed_precision, "fp16");
  EXPECT_THAT(error_of(R"({"bf16": {"enabled": false}})", {.mixed_precision = "bf16"}), HasSubstr("is false, but"));
  EXPECT_THAT(error_of(R"({"fp16": {"enabled": true}, "bf16": {"enabled": true}})"), HasSubstr("excludes fp16.enabled"));
  EXPECT_THAT(error_of("{}", {.mixed_precision = "fp8"}), HasSubstr("there is no fp8"));
  const auto c = resolve(R"({"zero_optimization": {"stage": 1}})", {.mixed_precision = "bf16"});
  EXPECT_EQ(c.sharding.param_dtype, DType::BF16);
  EXPECT_EQ(c.sharding.reduce_dtype, std::nullopt);
  EXPECT_EQ(resolve(R"({"zero_optimization": {"stage": 1}})", {.mixed_precision = "bf16", .compat = true}).sharding.reduce_dtype, DType::BF16);
  EXPECT_EQ(resolve(R"({"zero_optimization": {"stage": 1}, "communication_data_type": "fp32"})", {.mixed_precision = "bf16", .compat = true}).sharding.reduce_dtype,
            DType::F32);
}

TEST(DeepSpeedConfig, ReadsLossScaling) {
  const auto c = resolve(R"({"fp16": {"enabled": true, "loss_scale": 0, "initial_scale_power": 20, "loss_scale_window": 100, "hysteresis": 3,
                            "consecutive_hysteresis": true, "min_loss_scale": 4}})", {});
  EXPECT_EQ(c.loss_scale->initial, 1 << 20);
  EXPECT_EQ(c.loss_scale->growth_interval, 100);
  EXPECT_EQ(c.loss_scale->hysteresis, 3);
  EXPECT_TRUE(c.loss_scale->consecutive_hysteresis);
  EXPECT_EQ(c.loss_scale->minimum, 4);
  EXPECT_TRUE(c.loss_scale->dynamic);
  const auto constant = resolve(R"({"fp16": {"enabled": true, "loss_scale": 128}})", {});
  EXPECT_FALSE(constant.loss_scale->dynamic);
  EXPECT_EQ(constant.loss_scale->initial, 128);
}

TEST(DeepSpeedConfig, ReadsOffloadToDisk) {
  const auto c = resolve(R"({"zero_optimization": {"stage": 3, "sub_group_size": 1000,
    "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp", "buffer_count": 6, "pipeline_read": true},
    "offload_param": {"device": "nvme", "nvme_path": "/var/tmp", "buffer_size": 500, "max_in_cpu": 1e9}}})", {});
  EXPECT_EQ(c.sharding.offload_optimizer.place, Offload::Place::Disk);
  EXPECT_EQ(c.sharding.offload_optimizer.path, "/tmp");
  EXPECT_EQ(c.sharding.offload_optimizer.num_buffers, 6);
  EXPECT_EQ(c.sharding.offload_optimizer.chunk_bytes, 4000);
  EXPECT_EQ(c.sharding.offload_params.path, "/var/tmp");
  EXPECT_EQ(c.sharding.offload_params.chunk_bytes, 2000);
}

TEST(DeepSpeedConfig, KnowsThatAdamIsAdamW) {
  const auto type = [](const std::string& section) { return resolve("{\"optimizer\": " + section + "}", {}).optimizer->type; };
  EXPECT_EQ(type(R"({"type": "Adam"})"), "AdamW");
  EXPECT_EQ(type(R"({"type": "adam", "params": {"adam_w_mode": false}})"), "Adam");
  EXPECT_EQ(type(R"({"type": "AdamW", "params": {"adam_w_mode": false}})"), "AdamW");
  EXPECT_EQ(type(R"({"type": "Lion", "params": {"lr": 1e-4}})"), "Lion");
}

TEST(DeepSpeedPlugin, SaysThatAFileIsMissing) {
  try {
    (void)DeepSpeedPlugin::from_json("/no/such/zero3.json");
    FAIL() << "no error";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::FileNotFound);
    EXPECT_STREQ(failure.what(), "/no/such/zero3.json: there is no such file");
  }
}

TEST(DeepSpeedPlugin, StandsForAFileByItsFields) {
  DeepSpeedPlugin plugin{.zero_stage = 3, .gradient_accumulation_steps = 4, .gradient_clipping = 0.7, .offload_optimizer_device = "cpu",
                         .offload_param_device = "cpu", .zero3_save_16bit_model = true};
  const auto c = plugin.resolve({.num_processes = 2, .batch_sizes = {8}});
  EXPECT_EQ(c.sharding.strategy, ShardingStrategy::ShardParameters);
  EXPECT_EQ(c.sharding.offload_params.place, Offload::Place::Host);
  EXPECT_EQ(c.gradient_accumulation_steps, 4);
  EXPECT_EQ(c.gradient_clipping, 0.7);
  EXPECT_EQ(c.train_batch_size, 64);
  EXPECT_TRUE(c.gather_16bit_weights_on_model_save);
  EXPECT_EQ(c.sources.at("gradient_clipping"), "DeepSpeedPlugin.gradient_clipping");
  EXPECT_EQ(DeepSpeedPlugin{}.resolve().sharding.strategy, ShardingStrategy::ShardGradients);
}

TEST(DeepSpeedPlugin, FillsAFileAndMustNotContradictIt) {
  auto plugin = DeepSpeedPlugin::from_json(R"({"zero_optimization": {"stage": 1}, "gradient_clipping": "auto"})");
  plugin.gradient_clipping = 0.25;
  EXPECT_EQ(plugin.resolve().gradient_clipping, 0.25);
  plugin.zero_stage = 2;
  try {
    (void)plugin.resolve();
    FAIL() << "no error";
  } catch (const Failure& failure) {
    EXPECT_THAT(failure.what(), HasSubstr("zero_optimization.stage: is 1, but DeepSpeedPlugin.zero_stage is 2; keep one"));
  }
}

TEST(EffectiveConfig, PrintsEveryValueWithItsSource) {
  const auto c = resolve(R"({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.5})", {.num_processes = 2});
  EXPECT_THAT(to_text(c), HasSubstr("gradient_clipping"));
  EXPECT_THAT(to_text(c), HasSubstr("DeepSpeed configuration:gradient_clipping\n"));
  const auto json = to_json(c);
  EXPECT_EQ(json["values"]["gradient_clipping"]["value"], "1.5");
  EXPECT_EQ(json["values"]["num_processes"]["source"], "argument");
  EXPECT_FALSE(json["values"].contains("wrap"));  // only with sharded parameters
  for (const auto& row : rows(c)) EXPECT_FALSE(row.value.empty() || row.source.empty()) << row.name;
}

}  // namespace
}  // namespace troupe

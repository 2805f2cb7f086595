// Training by DeepSpeed's and FSDP's settings, through the Accelerator.
#include "fake_context.hpp"
#include "shard_run.hpp"

#include <troupe/configured.hpp>

#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace troupe {
namespace {

using test::OddNet;
using test::run_ranks;

std::vector<std::pair<std::string, at::Tensor>> train(TrainContext& context, AcceleratorOptions options) {
  set_seed(5);
  OddNet net{13, 6, 2};
  std::vector<at::Tensor> trained;
  for (auto& p : net->parameters()) {
    if (p.requires_grad()) trained.push_back(p);
  }
  AdamW optimizer{trained, {.lr = 1e-2}};
  Accelerator accelerator{context, std::move(options)};
  accelerator.prepare(net, optimizer);
  for (int step = 0; step < 3; ++step) {
    set_seed(static_cast<std::uint64_t>(step * 10 + context.world_rank()));
    const auto ids = at::randn({2, 5}, rank_generator()).abs().mul(3).clamp(0, 12).to(at::kLong);
    accelerator.backward(net(ids).to(at::kFloat).square().mean());
    optimizer.step();
    optimizer.zero_grad();
  }
  return accelerator.get_state_dict(net);
}

const char* const kZero3 = R"({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": "auto", "train_batch_size": "auto",
  "gradient_clipping": 0.5, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": "auto"}})";

TEST(Plugins, DeepSpeedsJsonTrainsAsTheOptionsItComesDownTo) {
  run_ranks(2, [](TrainContext& context) {
    // 10 * hidden size; clipping is what backward does by itself.
    const auto ours = train(context, {.deepspeed_plugin = DeepSpeedPlugin::from_json(kZero3), .hidden_sizes = {6}});
    EffectiveConfig config;
    config.sharding = {.strategy = ShardingStrategy::ShardParameters, .persistence_threshold = 60};
    config.gradient_clipping = 0.5;
    const auto same = train(context, {.config = config});
    ASSERT_EQ(ours.size(), same.size());
    for (std::size_t i = 0; i < ours.size(); ++i) EXPECT_TRUE(at::equal(ours[i].second, same[i].second)) << ours[i].first;
    config.gradient_clipping = 0;
    const auto unclipped = train(context, {.config = config});
    for (std::size_t i = 0; i < ours.size(); ++i) {
      if (ours[i].first == "embedding.weight") EXPECT_FALSE(at::equal(ours[i].second, unclipped[i].second));
    }
  });
}

TEST(Plugins, FsdpsFieldsTrainAsTheOptionsTheyComeDownTo) {
  run_ranks(2, [](TrainContext& context) {
    FullyShardedDataParallelPlugin plugin{.fsdp_version = 2};
    plugin.reshard_after_forward = true;
    plugin.auto_wrap_policy = "TRANSFORMER_BASED_WRAP";
    plugin.transformer_cls_names_to_wrap = {"OddBlock"};
    const auto ours = train(context, {.fsdp_plugin = plugin});
    const auto same = train(context, {.sharding = {.strategy = ShardingStrategy::ShardParameters}});
    for (std::size_t i = 0; i < ours.size(); ++i) EXPECT_TRUE(at::equal(ours[i].second, same[i].second)) << ours[i].first;
  });
}

TEST(Plugins, AnAutoThatNothingSettlesIsNamedWhenTheModelIsPrepared) {
  run_ranks(1, [](TrainContext& context) {
    try {
      (void)train(context, {.deepspeed_plugin = DeepSpeedPlugin::from_json(kZero3)});
      FAIL();
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::InvalidConfig);
      EXPECT_THAT(failure.what(), testing::HasSubstr("stage3_param_persistence_threshold"));
    }
  });
}

TEST(Plugins, TwoPluginsAreRefused) {
  run_ranks(1, [](TrainContext& context) {
    EXPECT_THROW((Accelerator{context, {.deepspeed_plugin = DeepSpeedPlugin{}, .fsdp_plugin = FullyShardedDataParallelPlugin{}}}), Failure);
  });
}

TEST(Configured, MakesTheOptimizerAndScheduleOfAFile) {
  auto w = at::randn({3}).requires_grad_(true);
  const auto optimizer = make_optimizer({.type = "AdamW", .lr = 0.01, .weight_decay = 0.1}, {{.params = {w}}});
  EXPECT_EQ(optimizer->lr(), 0.01);
  EXPECT_EQ(optimizer->groups()[0].weight_decay, 0.1);
  auto schedule = make_scheduler(*optimizer, {.type = "WarmupLR", .warmup_max_lr = 0.01, .warmup_num_steps = 10, .warmup_log = false});
  std::vector<double> lrs;
  for (int i = 0; i < 12; ++i) {
    lrs.push_back(optimizer->lr());
    schedule.set_step(i + 1);
  }
  EXPECT_LT(lrs[2], lrs[5]);
  EXPECT_NEAR(lrs[11], 0.01, 1e-12);
  EXPECT_THROW((void)make_optimizer({.type = "Muon", .lr = 0.01}, {{.params = {w}}}), Failure);
  EXPECT_THROW((void)make_scheduler(*optimizer, {.type = "Nothing"}), Failure);
}

}  // namespace
}  // namespace troupe

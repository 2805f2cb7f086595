// Accumulation windows: plugins, tails, weights, several models.
#include "fake_context.hpp"
#include "small_net.hpp"

#include <troupe/accelerator.hpp>

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace troupe {
namespace {

using test::run_ranks;
using test::SmallNetImpl;
using testing::HasSubstr;

struct One : torch::nn::Module {
  One() : w(register_parameter("w", at::ones({1}))) {}
  at::Tensor w;
};

struct Numbers final : MapDataset {
  explicit Numbers(std::size_t n) : count(n) {}
  std::size_t size() const override { return count; }
  TensorDict get(std::size_t index) const override { return {{"x", at::full({}, static_cast<double>(index), at::kFloat)}}; }
  std::size_t count;
};

double grad(const std::shared_ptr<One>& model) { return model->w.grad().defined() ? model->w.grad().item<double>() : 0; }

/// Gradients of one epoch over 0, 1, 2, 3, 4 in windows of three.
std::vector<double> window_gradients(const GradientAccumulationPlugin& plugin) {
  std::vector<double> grads;
  run_ranks(1, [&](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_plugin = plugin}};
    auto model = std::make_shared<One>();
    DataLoader data{std::make_shared<Numbers>(5), {.batch_size = 1}};
    accelerator.prepare(model, data);
    for (const auto& batch : data) {
      const auto window = accelerator.accumulate(model);
      accelerator.backward((model->w * batch["x"]).sum());
      if (!accelerator.sync_gradients()) continue;
      grads.push_back(grad(model));
      model->w.mutable_grad().reset();
    }
  });
  return grads;
}

TEST(GradientAccumulationPlugin, ATailIsDividedByItsOwnLengthOrByTheFullOne) {
  const auto own = window_gradients({.num_steps = 3});
  const auto full = window_gradients({.num_steps = 3, .tail_divisor = TailDivisor::FullLength});
  ASSERT_EQ(own.size(), 2u);
  ASSERT_EQ(full.size(), 2u);
  EXPECT_NEAR(own[0], 1, 1e-6);
  EXPECT_NEAR(full[0], 1, 1e-6);
  EXPECT_NEAR(own[1], 7 / 2.0, 1e-6);
  EXPECT_NEAR(full[1], 7 / 3.0, 1e-6);
}

TEST(GradientAccumulationPlugin, WithoutSyncWithDataloaderATailStaysOpen) {
  EXPECT_EQ(window_gradients({.num_steps = 3, .sync_with_dataloader = false}).size(), 1u);
}

TEST(GradientAccumulationPlugin, RefusesToBeContradicted) {
  run_ranks(1, [](TrainContext& context) {
    EXPECT_THROW((Accelerator{context, {.gradient_accumulation_steps = 2, .gradient_accumulation_plugin = GradientAccumulationPlugin{}}}), Failure);
    EXPECT_THROW((Accelerator{context, {.gradient_accumulation_plugin = GradientAccumulationPlugin{.num_steps = 0}}}), Failure);
  });
}

TEST(GradientAccumulationPlugin, SyncEachBatchLeavesNoLocalGradient) {
  run_ranks(3, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_plugin = GradientAccumulationPlugin{.num_steps = 2, .sync_each_batch = true}}};
    auto model = std::make_shared<One>();
    accelerator.prepare(model);
    for (int batch = 1; batch <= 2; ++batch) {
      const auto window = accelerator.accumulate(model);
      accelerator.backward(model->w.sum() * (batch * (1 + context.world_rank())));
      EXPECT_NEAR(grad(model), (batch == 1 ? 1 : 3) / 2.0 * 2, 1e-6);  // the ranks' factors average 2
    }
  });
}

TEST(NoSync, IsEachModelsOwn) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto a = std::make_shared<One>(), b = std::make_shared<One>(), stranger = std::make_shared<One>();
    accelerator.prepare(a, b);
    const double rank = context.world_rank();
    {
      const auto local = accelerator.no_sync(a);
      accelerator.backward((a->w * rank + b->w * rank).sum());
    }
    EXPECT_NEAR(grad(a), rank, 1e-6);
    EXPECT_NEAR(grad(b), 0.5, 1e-6);
    EXPECT_THROW((void)accelerator.no_sync(stranger), Failure);
    EXPECT_THROW((void)accelerator.accumulate(stranger), Failure);
  });
}

TEST(TriggerSyncInBackward, ReducesWithinNoSync) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto model = std::make_shared<One>();
    accelerator.prepare(model);
    const auto local = accelerator.no_sync();
    accelerator.backward(model->w.sum() * context.world_rank());
    EXPECT_NEAR(grad(model), context.world_rank(), 1e-6);
    {
      const auto sync = accelerator.trigger_sync_in_backward(model);
      accelerator.backward(model->w.sum() * context.world_rank());
    }
    EXPECT_NEAR(grad(model), 1, 1e-6);  // the mean of 0 + 0 and 1 + 1
    accelerator.backward(model->w.sum() * context.world_rank());
    EXPECT_NEAR(grad(model), 1 + context.world_rank(), 1e-6);
  });
}

// Two models in turn, as a generator and its critic.
TEST(Accumulate, ABackwardConcernsOnlyTheModelsItReaches) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 2}};
    auto a = std::make_shared<One>(), b = std::make_shared<One>();
    accelerator.prepare(a, b);
    const double rank = context.world_rank();
    for (int batch = 0; batch < 2; ++batch) {
      const auto window = accelerator.accumulate(a, b);
      accelerator.backward(a->w.sum() * (4 * rank));
      accelerator.backward(b->w.sum() * (8 * rank));
    }
    EXPECT_NEAR(grad(a), 2, 1e-6);
    EXPECT_NEAR(grad(b), 4, 1e-6);
  });
}

TEST(Accumulate, AModelThatNoBackwardHasReachedHasNoGradient) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto a = std::make_shared<One>(), b = std::make_shared<One>();
    accelerator.prepare(a, b);
    accelerator.backward(a->w.sum() * context.world_rank());
    EXPECT_NEAR(grad(a), 0.5, 1e-6);
    EXPECT_FALSE(b->w.grad().defined());
    auto both = std::make_shared<SmallNetImpl>();  // but half a model is an error, as ever
    accelerator.prepare(both);
    try {
      accelerator.backward(both->forward(at::ones({1, 6}), false).sum());
      FAIL() << "no failure";
    } catch (const Failure& failure) {
      EXPECT_THAT(failure.what(), HasSubstr("has no gradient for spare.weight"));  // both ranks say so
    }
  });
}

TEST(Accumulate, ALocalGradientIsReducedEvenWhenTheLastBackwardDoesNotReachItsModel) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 2}};
    auto a = std::make_shared<One>(), b = std::make_shared<One>();
    accelerator.prepare(a, b);
    {
      const auto window = accelerator.accumulate(a, b);
      accelerator.backward((a->w * (4 * context.world_rank()) + b->w).sum());
    }
    const auto window = accelerator.accumulate(a, b);
    accelerator.backward(b->w.sum());
    EXPECT_NEAR(grad(a), 1, 1e-6);
  });
}

constexpr int num_rows = 24;

at::Tensor rows() {
  set_seed(5);
  return at::randn({num_rows, 6}, rank_generator());
}

std::shared_ptr<SmallNetImpl> make_net() {
  set_seed(3);
  return std::make_shared<SmallNetImpl>();
}

at::Tensor mean_loss(SmallNetImpl& net, const at::Tensor& x) { return net.forward(x).square().mean(1).mean(); }

struct WeightedRanks : testing::TestWithParam<std::tuple<int, int, bool>> {};

// Micro-batches of 1, 2, 3, … rows, dealt to ranks in turn: weighted by their rows they are one batch of all rows.
TEST_P(WeightedRanks, GradientsEqualThoseOfOneBigBatch) {
  const auto [ranks, steps, each] = GetParam();
  const auto cut = [ranks = ranks](int step, int rank) {
    const int number = step * ranks + rank;
    return rows().narrow(0, number * (number + 1) / 2, number + 1);
  };
  auto whole = make_net();
  const int all = ranks * steps;
  mean_loss(*whole, rows().narrow(0, 0, all * (all + 1) / 2)).backward();
  run_ranks(ranks, [&, steps = steps, each = each](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_plugin = GradientAccumulationPlugin{.num_steps = steps, .sync_each_batch = each}}};
    auto net = make_net();
    accelerator.prepare(net);
    for (int repeat = 0; repeat < 2; ++repeat) {  // a window leaves nothing behind for the next
      for (auto& p : net->parameters()) p.mutable_grad().reset();
      for (int step = 0; step < steps; ++step) {
        const auto window = accelerator.accumulate(net);
        const auto x = cut(step, context.world_rank());
        accelerator.backward(mean_loss(*net, x), static_cast<double>(x.size(0)));
      }
      const auto mine = net->parameters(), expected = whole->parameters();
      for (std::size_t i = 0; i < mine.size(); ++i) {
        EXPECT_LT((mine[i].grad() - expected[i].grad()).norm().item<double>(), 2e-6 * expected[i].grad().norm().item<double>()) << i;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Windows, WeightedRanks,
                         testing::Values(std::tuple{1, 3, false}, std::tuple{2, 1, false}, std::tuple{2, 3, false}, std::tuple{3, 2, false},
                                         std::tuple{2, 2, true}));

struct WeightedStrategies : testing::TestWithParam<ShardingStrategy> {};

TEST_P(WeightedStrategies, GradientsHaveTheNormOfOneBigBatchs) {
  auto whole = make_net();
  mean_loss(*whole, rows().narrow(0, 0, 10)).backward();
  double squares = 0;
  for (const auto& p : whole->parameters()) squares += p.grad().square().sum().item<double>();
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 2, .sharding = {.strategy = GetParam()}}};
    auto net = make_net();
    accelerator.prepare(net);
    for (int step = 0; step < 2; ++step) {
      const auto window = accelerator.accumulate(net);
      const int number = 2 * step + context.world_rank();
      const auto x = rows().narrow(0, number * (number + 1) / 2, number + 1);
      accelerator.backward(mean_loss(*net, x), static_cast<double>(x.size(0)));
    }
    EXPECT_NEAR(accelerator.clip_grad_norm(net->parameters(), 1e9), std::sqrt(squares), 1e-5 * std::sqrt(squares));
  });
}

INSTANTIATE_TEST_SUITE_P(All, WeightedStrategies,
                         testing::Values(ShardingStrategy::Replicate, ShardingStrategy::ShardOptimizer, ShardingStrategy::ShardGradients));

TEST(WeightedBackward, ATailNeedsNoDivisor) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 3}};
    auto model = std::make_shared<One>();
    DataLoader data{std::make_shared<Numbers>(5), {.batch_size = 1}};
    accelerator.prepare(model, data);
    std::vector<double> grads;
    for (const auto& batch : data) {
      const auto window = accelerator.accumulate();
      accelerator.backward((model->w * batch["x"]).sum(), 1 + batch["x"].item<double>());
      if (!accelerator.sync_gradients()) continue;
      grads.push_back(grad(model));
      model->w.mutable_grad().reset();
    }
    EXPECT_NEAR(grads.at(0), (0 * 1 + 1 * 2 + 2 * 3) / 6.0, 1e-6);
    EXPECT_NEAR(grads.at(1), (3 * 4 + 4 * 5) / 9.0, 1e-6);
  });
}

TEST(WeightedBackward, ARankMayHaveNothingThatCounts) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto model = std::make_shared<One>();
    accelerator.prepare(model);
    accelerator.backward(model->w.sum() * (3 + context.world_rank()), context.world_rank());
    EXPECT_NEAR(grad(model), 4, 1e-6);
    EXPECT_THROW(accelerator.backward(model->w.sum(), 0), Failure);
    EXPECT_THROW(accelerator.backward(model->w.sum(), -1), Failure);
  });
}

TEST(WeightedBackward, AWindowHasWeightsThroughoutOrNotAtAll) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 2}};
    auto model = std::make_shared<One>();
    accelerator.prepare(model);
    (void)accelerator.accumulate();
    accelerator.backward(model->w.sum());
    (void)accelerator.accumulate();
    EXPECT_THROW(accelerator.backward(model->w.sum(), 2), Failure);
    (void)accelerator.accumulate();
    accelerator.backward(model->w.sum(), 2);
    (void)accelerator.accumulate();
    accelerator.backward(model->w.sum());
    EXPECT_THROW((void)accelerator.accumulate(), Failure);
  });
}

}  // namespace
}  // namespace troupe

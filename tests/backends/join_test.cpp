// Ranks with different numbers of batches.
#include "fake_context.hpp"
#include "small_net.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/local_sgd.hpp>

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>

namespace troupe {
namespace {

using test::run_ranks;
using test::SmallNetImpl;

at::Tensor batch(int rank, int number) {
  set_seed(static_cast<std::uint64_t>(100 * rank + number));
  return at::randn({4, 6}, rank_generator());
}

std::shared_ptr<SmallNetImpl> make_net(std::int64_t width = 8) {
  set_seed(3);
  return std::make_shared<SmallNetImpl>(width);
}

at::Tensor loss_of(SmallNetImpl& net, const at::Tensor& x) { return net.forward(x).square().mean(); }

/// One process that knows all ranks' batches: at each step the sum of those there are, over the number of ranks.
std::vector<at::Tensor> reference(const std::vector<int>& batches, std::int64_t width = 8) {
  auto net = make_net(width);
  AdamW optimizer{net->parameters(), {.lr = 0.01}};
  for (int step = 0; step < *std::max_element(batches.begin(), batches.end()); ++step) {
    for (std::size_t r = 0; r < batches.size(); ++r) {
      if (step < batches[r]) (loss_of(*net, batch(static_cast<int>(r), step)) / static_cast<double>(batches.size())).backward();
    }
    optimizer.step();
    optimizer.zero_grad();
  }
  return net->parameters();
}

double distance(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, ((a[i] - b[i]).norm() / b[i].norm()).item<double>());
  return worst;
}

struct Uneven {
  std::vector<int> batches;
  DistributedDataParallelKwargs ddp{};
  std::int64_t width = 8;
};
void PrintTo(const Uneven& u, std::ostream* out) { *out << testing::PrintToString(u.batches) << " width " << u.width; }

struct JoinRanks : testing::TestWithParam<Uneven> {};

TEST_P(JoinRanks, TrainAsOneProcessThatHasAllTheirBatches) {
  const auto& uneven = GetParam();
  const auto expected = reference(uneven.batches, uneven.width);
  std::mutex mutex;
  std::vector<std::vector<at::Tensor>> weights, states;
  std::vector<std::int64_t> steps;
  run_ranks(static_cast<int>(uneven.batches.size()), [&](TrainContext& context) {
    Accelerator accelerator{context, {.ddp = uneven.ddp}};
    auto net = make_net(uneven.width);
    AdamW optimizer{net->parameters(), {.lr = 0.01}};
    auto scheduler = get_constant_schedule_with_warmup(optimizer, 0);
    accelerator.prepare(net, optimizer, scheduler);
    const auto train = [&] {
      const int rank = context.world_rank();
      for (int number = 0; number < uneven.batches[static_cast<std::size_t>(rank)]; ++number) {
        const auto window = accelerator.accumulate(net);
        accelerator.backward(loss_of(*net, batch(rank, number)));
        optimizer.step();
        scheduler.step();
        optimizer.zero_grad();
      }
    };
    accelerator.join_uneven_inputs(train);
    if (uneven.ddp.comm_hook == CommHook::NO) {
      EXPECT_LT(distance(net->parameters(), expected), 1e-5);
    }
    // What everyone was given serves to go on with: the next epoch leaves them equal, too.
    accelerator.join_uneven_inputs(train);
    const std::scoped_lock lock{mutex};
    weights.push_back(net->parameters());
    std::vector<at::Tensor> state;
    for (const auto& [name, tensor] : optimizer.state()) state.push_back(tensor);
    states.push_back(state);
    steps.push_back(scheduler.last_step());
  });
  for (std::size_t r = 1; r < weights.size(); ++r) {
    for (std::size_t i = 0; i < weights[0].size(); ++i) EXPECT_TRUE(at::equal(weights[r][i], weights[0][i])) << i;
    ASSERT_EQ(states[r].size(), states[0].size());
    for (std::size_t i = 0; i < states[0].size(); ++i) EXPECT_TRUE(at::equal(states[r][i], states[0][i])) << i;
    EXPECT_EQ(steps[r], steps[0]);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, JoinRanks,
    testing::Values(Uneven{{2, 4}}, Uneven{{4, 2}}, Uneven{{3, 3}}, Uneven{{0, 2}}, Uneven{{5, 1, 3}}, Uneven{{1, 2}, {}, 60'000},
                    Uneven{{3, 1, 2}, {.bucket_cap_mb = 1e-4, .find_unused_parameters = true}},
                    Uneven{{2, 4}, {.comm_hook = CommHook::BF16}},
                    Uneven{{2, 4}, {.comm_hook = CommHook::POWER_SGD, .comm_state_option = {.start_powerSGD_iter = 1, .min_compression_rate = 1}}}));

struct Counter : torch::nn::Module {
  Counter() : w(register_parameter("w", at::ones({1}))), seen(register_buffer("seen", at::zeros({1}))) {}
  at::Tensor w, seen;
};

TEST(JoinUnevenInputs, BuffersComeFromARankThatStillTrains) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto model = std::make_shared<Counter>();
    accelerator.prepare(model);
    accelerator.join_uneven_inputs([&] {
      for (int i = 0; i < 1 + 2 * context.world_rank(); ++i) {
        { at::NoGradGuard no_grad; model->seen.add_(1); }
        accelerator.backward(model->w.sum());
        model->w.mutable_grad().reset();
      }
    });
    EXPECT_EQ(model->seen.item<double>(), 3);
  });
}

TEST(JoinUnevenInputs, WeightsCountOnlyBatchesThatExist) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 2}};
    auto model = std::make_shared<Counter>();
    accelerator.prepare(model);
    std::vector<double> grads;
    accelerator.join_uneven_inputs([&] {
      for (int i = 0; i < 2 + 2 * context.world_rank(); ++i) {
        const auto window = accelerator.accumulate(model);
        accelerator.backward(model->w.sum() * (1 + i), 1 + i);
        if (!accelerator.sync_gradients()) continue;
        grads.push_back(model->w.grad().item<double>());
        model->w.mutable_grad().reset();
      }
    });
    ASSERT_EQ(grads.size(), context.world_rank() ? 2u : 1u);
    EXPECT_NEAR(grads[0], (1 + 4) / 3.0, 1e-6);
    if (context.world_rank()) {
      EXPECT_NEAR(grads[1], (9 + 16) / 7.0, 1e-6);
    }
  });
}

TEST(JoinUnevenInputs, SeveralModelsAreReducedInOneOrder) {
  run_ranks(3, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto a = make_net(8), b = make_net(12);  // backward reaches b first, the shadows begin with a
    accelerator.prepare(a, b);
    accelerator.join_uneven_inputs([&] {
      for (int i = 0; i < 1 + context.world_rank(); ++i) {
        for (auto& p : a->parameters()) p.mutable_grad().reset();
        for (auto& p : b->parameters()) p.mutable_grad().reset();
        accelerator.backward(b->forward(a->forward(batch(context.world_rank(), i)).repeat({1, 2})).square().mean());
      }
    });
    if (context.world_rank() == 2) {
      EXPECT_TRUE(a->first->weight.grad().defined());
    }
  });
}

struct Numbers final : MapDataset {
  std::size_t size() const override { return 5; }
  TensorDict get(std::size_t index) const override { return {{"x", at::full({}, static_cast<double>(index), at::kFloat)}}; }
};

TEST(JoinUnevenInputs, OverridesEvenBatchesInsideOnly) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto model = std::make_shared<Counter>();
    DataLoader data{std::make_shared<Numbers>(), {.batch_size = 1}};
    accelerator.prepare(model, data);
    EXPECT_EQ(data.size(), 3);
    double sum = 0;
    accelerator.join_uneven_inputs(
        [&] {
          EXPECT_EQ(data.size(), 3 - context.world_rank());
          for (const auto& rows : data) {
            sum += rows["x"].item<double>();
            accelerator.backward((model->w * rows["x"]).sum());
            model->w.mutable_grad().reset();
          }
        },
        false);
    EXPECT_EQ(sum, context.world_rank() ? 1 + 3 : 0 + 2 + 4);
    EXPECT_EQ(data.size(), 3);
  });
}

TEST(JoinUnevenInputs, RefusesWhatItCannotFollow) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto model = std::make_shared<Counter>();
    accelerator.prepare(model);
    EXPECT_THROW(accelerator.join_uneven_inputs([&] { accelerator.join_uneven_inputs([] {}); }), Failure);
    EXPECT_THROW(accelerator.join_uneven_inputs([&] { LocalSGD local{accelerator, model, 2}; }), Failure);
  });
}

TEST(JoinUnevenInputs, IsThePlainLoopForShardedModels) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context, {.sharding = {.strategy = ShardingStrategy::ShardOptimizer}}};
    auto net = make_net();
    accelerator.prepare(net);
    int steps = 0;
    accelerator.join_uneven_inputs([&] {
      accelerator.backward(loss_of(*net, batch(context.world_rank(), 0)));
      ++steps;
    });
    EXPECT_EQ(steps, 1);
  });
}

// An overflow is agreed on by all ranks, those that have no batch left included.
TEST(JoinUnevenInputs, KeepsTheLossScalesEqual) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context, {.mixed_precision = Precision::FP16}};
    auto model = std::make_shared<Counter>();
    accelerator.prepare(model);
    accelerator.join_uneven_inputs([&] {
      for (int i = 0; i < 1 + 2 * context.world_rank(); ++i) {
        accelerator.backward((model->w * (i == 1 ? INFINITY : 1.0)).sum());
        model->w.mutable_grad().reset();
      }
    });
    EXPECT_EQ(accelerator.loss_scale(), 32768);
  });
}

TEST(JoinUnevenInputs, PassesOnWhatTheLoopThrows) {
  EXPECT_THROW(run_ranks(2,
                         [](TrainContext& context) {
                           Accelerator accelerator{context};
                           auto model = std::make_shared<Counter>();
                           accelerator.prepare(model);
                           accelerator.join_uneven_inputs([&] {
                             if (context.world_rank() == 1) throw std::runtime_error{"planted"};
                           });
                         }),
               std::runtime_error);
}

TEST(JoinUnevenInputs, IsThePlainLoopWithOneProcess) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context};
    int calls = 0;
    accelerator.join_uneven_inputs([&] { ++calls; }, false);
    EXPECT_EQ(calls, 1);
  });
}

}  // namespace
}  // namespace troupe

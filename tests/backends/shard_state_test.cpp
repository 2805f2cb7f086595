// What sharding promises besides its numbers: bytes sent, memory kept, overflow, recovery of state, named errors.
#include "fake_context.hpp"
#include "shard_engine.hpp"
#include "shard_run.hpp"

#include <troupe/delayed_communicator.hpp>
#include <troupe/memory_estimate.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <mutex>
#include <thread>

namespace troupe {
namespace {

using test::run_ranks;
using testing::HasSubstr;

/// Blocks of one linear layer whose sizes divide by every number of ranks used here.
struct EvenBlockImpl : Unit {
  EvenBlockImpl() : linear(register_module("linear", torch::nn::Linear(torch::nn::LinearOptions(192, 192).bias(false)))) {}
  at::Tensor forward(const at::Tensor& x) { return at::relu(linear(x)); }
  torch::nn::Linear linear;
};
TROUPE_UNIT(EvenBlock);

struct EvenNetImpl : Unit {
  explicit EvenNetImpl(int count) : head(register_module("head", torch::nn::Linear(torch::nn::LinearOptions(192, 48).bias(false)))) {
    for (int i = 0; i < count; ++i) blocks.push_back(register_module("block" + std::to_string(i), EvenBlock()));
  }
  at::Tensor forward(at::Tensor x, int skip = -1) {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (static_cast<int>(i) != skip) x = blocks[i](x);
    }
    return head(x);
  }
  std::vector<EvenBlock> blocks;
  torch::nn::Linear head;
};
TROUPE_UNIT(EvenNet);

constexpr std::int64_t kBlock = 192 * 192, kHead = 192 * 48, kBlocks = 4;
constexpr std::int64_t kPsi = kBlocks * kBlock + kHead;

ShardingOptions strategy(ShardingStrategy s) { return {.strategy = s}; }

struct Strategies : testing::TestWithParam<std::tuple<int, ShardingStrategy>> {};

TEST_P(Strategies, SendWhatTheFormulasSay) {
  const auto& [size, which] = GetParam();
  run_ranks(size, [&, n = size, s = which](TrainContext& context) {
    EvenNet net{kBlocks};
    AdamW optimizer{net->parameters(), {}};
    detail::ShardEngine engine{context.communicator(), net.ptr(), strategy(s)};
    optimizer.repoint([&] {
      std::vector<std::vector<at::Tensor>> pieces(1);
      for (const auto& p : optimizer.handles()) pieces[0].push_back(engine.piece_of(p));
      return pieces;
    }());
    const auto step = [&] {
      const auto loss = net(at::randn({2, 192})).sum();
      engine.begin(true);
      loss.backward();
      engine.finish();
      optimizer.step();
      engine.after_step();
      engine.settle();
      optimizer.zero_grad();
    };
    step();
    const auto before = engine.sent();
    step();
    const auto after = engine.sent();
    const auto share = [n](std::int64_t elements) { return static_cast<std::uint64_t>(4 * elements / n * (n - 1)); };
    EXPECT_EQ(after.gradients - before.gradients, share(kPsi));
    // The root's parameters stay from forward to backward, and so do those of the last block: 3Ψ without them, else 2Ψ.
    const auto gathered = s == ShardingStrategy::ShardParameters ? kPsi + (kBlocks - 1) * kBlock : kPsi;
    EXPECT_EQ(after.parameters - before.parameters, share(gathered));
  });
}

TEST_P(Strategies, KeepWhatTheFormulasSay) {
  const auto& [size, which] = GetParam();
  run_ranks(size, [&, n = size, s = which](TrainContext& context) {
    Accelerator accelerator{context, {.sharding = strategy(s)}};
    EvenNet net{kBlocks};
    AdamW optimizer{net->parameters(), {}};
    accelerator.prepare(net, optimizer);
    for (int i = 0; i < 2; ++i) {
      accelerator.backward(net(at::randn({2, 192})).sum());
      optimizer.step();
      optimizer.zero_grad();
    }
    const auto& memory = accelerator.memory();
    const ModelSize model{.num_params = kPsi, .largest_unit = kBlock, .root_unit = kHead, .num_units = kBlocks + 1};
    const auto estimate = estimate_memory(model, strategy(s), n);
    const auto now = [&](MemoryCategory c) { return memory.usage(c).now; };
    const auto resident = now(MemoryCategory::Parameters) + now(MemoryCategory::Gradients) + now(MemoryCategory::Optimizer);
    EXPECT_LE(static_cast<double>(resident), 1.02 * static_cast<double>(estimate.resident()));
    // ZeRO-1's whole gradients are gone once they are reduced, which its formula does not know.
    if (s != ShardingStrategy::ShardOptimizer) EXPECT_GE(static_cast<double>(resident), 0.98 * static_cast<double>(estimate.resident()));
    EXPECT_THAT(accelerator.memory_report(), HasSubstr("parameters"));
    EXPECT_EQ(optimizer.state(StateKeys::Name).front().first, "exp_avg.head.weight");
    if (s == ShardingStrategy::ShardParameters) {
      EXPECT_LE(static_cast<double>(memory.usage(MemoryCategory::Gathered).peak), 1.1 * static_cast<double>(estimate.gathered));
      EXPECT_EQ(now(MemoryCategory::Gathered), 0);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, Strategies,
                         testing::Combine(testing::Values(2, 4), testing::Values(ShardingStrategy::ShardOptimizer, ShardingStrategy::ShardGradients,
                                                                                 ShardingStrategy::ShardParameters)));

TEST(Sharding, AnOverflowOnOneRankSkipsTheStepOnAll) {
  run_ranks(3, [](TrainContext& context) {
    auto sharding = strategy(ShardingStrategy::ShardParameters);
    sharding.param_dtype = DType::F32;
    Accelerator accelerator{context, {.mixed_precision = Precision::FP16, .sharding = sharding, .loss_scale = {.initial = 1024, .growth_interval = 2}}};
    EvenNet net{2};
    AdamW optimizer{net->parameters(), {.lr = 0.1}};
    auto scheduler = get_linear_schedule_with_warmup(optimizer, 0, 100);
    accelerator.prepare(net, optimizer, scheduler);
    std::vector<double> scales;
    std::vector<bool> skipped;
    for (int step = 0; step < 6; ++step) {
      const auto before = accelerator.get_state_dict(net);
      auto loss = net(at::randn({2, 192})).sum();
      if (step == 2 && context.world_rank() == 1) loss = loss * std::numeric_limits<float>::infinity();
      accelerator.backward(loss);
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
      scales.push_back(accelerator.loss_scale());
      skipped.push_back(accelerator.optimizer_step_was_skipped());
      const auto after = accelerator.get_state_dict(net);
      for (std::size_t i = 0; i < before.size(); ++i) EXPECT_EQ(at::equal(before[i].second, after[i].second), step == 2) << before[i].first;
    }
    EXPECT_EQ(skipped, (std::vector<bool>{false, false, true, false, false, false}));
    EXPECT_EQ(scales, (std::vector<double>{1024, 2048, 1024, 1024, 2048, 2048}));  // torch.amp.GradScaler's
    EXPECT_EQ(scheduler.last_step(), 5);
  });
}

/// A linear layer that notes what it computed with.
struct NotingImpl : Unit {
  NotingImpl() : linear(register_module("linear", torch::nn::Linear(32, 32))) {}
  at::Tensor forward(const at::Tensor& x) {
    all_half = all_half && x.scalar_type() == at::kHalf && linear->weight.scalar_type() == at::kHalf;
    return at::relu(linear(x));
  }
  torch::nn::Linear linear;
  bool all_half = true;
};
TROUPE_UNIT(Noting);

struct NotingNetImpl : Unit {
  NotingNetImpl() : first(register_module("first", Noting())), second(register_module("second", Noting())) {}
  at::Tensor forward(const at::Tensor& x) { return second(first(x)); }
  Noting first, second;
};
TROUPE_UNIT(NotingNet);

/// 'o': one rank's gradients are too large for fp16 (not for fp32), '.': nobody's are.
struct Sequence {
  std::string steps;
  LossScale options;
  std::vector<double> scales;
};

struct Fp16 : testing::TestWithParam<std::tuple<ShardingStrategy, LossScale::Policy>> {
  /// As torch.amp.GradScaler and DeepSpeed's test_some_overflow have them, see tests/core/loss_scaler_test.cpp.
  static Sequence sequence() {
    if (std::get<1>(GetParam()) == LossScale::Policy::GradScaler) {
      return {"oo..o......", {.growth_interval = 3}, {32768, 16384, 16384, 16384, 8192, 8192, 8192, 16384, 16384, 16384, 32768}};
    }
    return {"oo...o...", {.policy = LossScale::Policy::DeepSpeed, .initial = 256, .growth_interval = 2, .minimum = 1}, {128, 64, 64, 64, 128, 64, 64, 64, 128}};
  }
};

TEST_P(Fp16, ComputesInHalfBesideFp32MastersAndItsScaleFollowsThePublishedSequence) {
  run_ranks(2, [](TrainContext& context) {
    const auto planned = sequence();
    Accelerator accelerator{context, {.mixed_precision = Precision::FP16, .sharding = strategy(std::get<0>(GetParam())), .loss_scale = planned.options}};
    NotingNet net;
    AdamW optimizer{net->parameters(), {.lr = 1e-3}};
    accelerator.prepare(net, optimizer);
    std::vector<double> scales;
    for (std::size_t step = 0; step < planned.steps.size(); ++step) {
      const bool overflows = planned.steps[step] == 'o';
      const auto before = accelerator.get_state_dict(net);
      auto loss = net(at::randn({4, 32})).to(at::kFloat).mean();
      if (overflows && context.world_rank() == 1) loss = loss * 1e6;
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      EXPECT_EQ(accelerator.optimizer_step_was_skipped(), overflows) << step;
      const auto after = accelerator.get_state_dict(net);
      for (std::size_t i = 0; i < before.size(); ++i) EXPECT_EQ(at::equal(before[i].second, after[i].second), overflows) << step << " " << before[i].first;
      scales.push_back(accelerator.loss_scale());
    }
    EXPECT_EQ(scales, planned.scales);
    EXPECT_TRUE(net->first->all_half && net->second->all_half);
    for (const auto& [name, tensor] : accelerator.get_state_dict(net)) {
      EXPECT_EQ(tensor.scalar_type(), at::kFloat) << name;
      EXPECT_FALSE(at::equal(tensor, tensor.to(at::kHalf).to(at::kFloat))) << name << " has no more bits than fp16";
    }
  });
}
INSTANTIATE_TEST_SUITE_P(Policies, Fp16,
                         testing::Combine(testing::Values(ShardingStrategy::ShardOptimizer, ShardingStrategy::ShardGradients, ShardingStrategy::ShardParameters),
                                          testing::Values(LossScale::Policy::GradScaler, LossScale::Policy::DeepSpeed)));

TEST(Sharding, AStateSavedUnderOneStrategyGoesOnUnderAnotherAndOnFewerRanks) {
  char name[] = "/tmp/troupe-shard-XXXXXX";
  const std::filesystem::path directory = ::mkdtemp(name);
  const Scope remove{[&] { std::filesystem::remove_all(directory); }};
  const auto data = at::randn({6, 2, 192});
  const auto train = [&](Accelerator& accelerator, EvenNet& net, AdamW& optimizer, int from, int to) {
    for (int step = from; step < to; ++step) {
      accelerator.backward(net(data[step]).square().sum());
      optimizer.step();
      optimizer.zero_grad();
    }
  };
  std::vector<std::pair<std::string, at::Tensor>> expected;
  run_ranks(4, [&](TrainContext& context) {
    set_seed(3);
    EvenNet net{2};
    AdamW optimizer{net->parameters(), {.lr = 1e-3}};
    Accelerator accelerator{context, {.sharding = strategy(ShardingStrategy::ShardParameters)}};
    accelerator.prepare(net, optimizer);
    train(accelerator, net, optimizer, 0, 3);
    accelerator.save_state(directory);
    train(accelerator, net, optimizer, 3, 6);
    const auto state = accelerator.get_state_dict(net);
    if (context.world_rank() == 0) expected = state;
  });
  for (const auto [size, which] : {std::pair{4, ShardingStrategy::ShardParameters}, {2, ShardingStrategy::ShardGradients}, {1, ShardingStrategy::Replicate}}) {
    run_ranks(size, [&, s = which](TrainContext& context) {
      EvenNet net{2};
      AdamW optimizer{net->parameters(), {.lr = 1e-3}};
      Accelerator accelerator{context, {.sharding = strategy(s)}};
      accelerator.prepare(net, optimizer);
      accelerator.load_state(directory);
      train(accelerator, net, optimizer, 3, 6);
      const auto state = accelerator.get_state_dict(net);
      if (context.world_rank() != 0) return;
      // Every rank has the same batch, so the mean over 1, 2 or 4 ranks is the same, bit for bit.
      for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(state[i].second, expected[i].second)) << size << " " << expected[i].first;
    });
  }
}

TEST(Sharding, RandomDelaysChangeNoBit) {
  const auto c = test::case_from("zero3,accumulation=2");
  auto seats = make_thread_group(2, std::chrono::seconds{20});
  std::vector<std::thread> threads;
  std::vector<std::string> errors(2);
  for (std::size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      const auto wire = delayed_communicator(std::move(seats[r]), {.latency = std::chrono::microseconds{50}, .jitter = std::chrono::milliseconds{2}, .seed = r});
      test::FakeContext context{*wire};
      try {
        const auto ours = test::train_sharded(context, c);
        if (r == 0) test::expect_equal(ours, test::train_alone(c, 2));
      } catch (const std::exception& error) {
        errors[r] = error.what();
        wire->abort(error.what());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(errors, testing::Each(""));
}

TEST(Sharding, TwoThousandStepsLeaveAllocatedBytesFlat) {
  std::size_t early = 0, late = 0;
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context, {.sharding = strategy(ShardingStrategy::ShardParameters)}};
    EvenNet net{2};
    AdamW optimizer{net->parameters(), {}};
    accelerator.prepare(net, optimizer);
    for (int step = 0; step < 2000; ++step) {
      accelerator.backward(net(at::randn({2, 192})).sum());
      optimizer.step();
      optimizer.zero_grad();
      if (step != 199 && step != 1999) continue;
      context.barrier();
      if (context.world_rank() == 0) (step == 199 ? early : late) = mallinfo2().uordblks + mallinfo2().hblkhd;
      context.barrier();
    }
  });
  EXPECT_LE(late, early + 64 * 1024);
}

/// With `debug` and without, units being of one size.
struct Astray : testing::TestWithParam<bool> {};

TEST_P(Astray, RanksThatSkipAUnitAreNamed) {
  std::mutex mutex;
  std::vector<std::string> errors;
  try {
    run_ranks(2, [&](TrainContext& context) {
      auto sharding = strategy(ShardingStrategy::ShardParameters);
      sharding.debug = GetParam();
      Accelerator accelerator{context, {.sharding = sharding}};
      EvenNet net{3};
      AdamW optimizer{net->parameters(), {}};
      accelerator.prepare(net, optimizer);
      try {
        accelerator.backward(net(at::randn({2, 192}), context.world_rank() == 1 ? 1 : -1).sum());
        ADD_FAILURE() << "rank " << context.world_rank() << " went on";
      } catch (const Failure& failure) {
        const std::scoped_lock lock{mutex};
        errors.push_back(failure.what());
        throw;
      }
    });
  } catch (const Failure&) {
  }
  ASSERT_EQ(errors.size(), 2u);
  for (const auto& text : errors) {
    EXPECT_THAT(text, HasSubstr("block1"));
    EXPECT_THAT(text, HasSubstr("block2"));
  }
}
INSTANTIATE_TEST_SUITE_P(Sharding, Astray, testing::Bool(), [](const auto& test) { return test.param ? "debug" : "release"; });

TEST(Sharding, ALossBackwardPastTheAcceleratorIsAnError) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context, {.sharding = strategy(ShardingStrategy::ShardParameters)}};
    EvenNet net{1};
    AdamW optimizer{net->parameters(), {}};
    accelerator.prepare(net, optimizer);
    EXPECT_THROW(net(at::randn({2, 192})).sum().backward(), Failure);
  });
}

TEST(Sharding, AForwardPastTheUnitThrowsInsteadOfReadingFreedMemory) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context, {.sharding = strategy(ShardingStrategy::ShardParameters)}};
    EvenNet net{1};
    accelerator.prepare(net);
    EXPECT_ANY_THROW((void)net->forward(at::randn({2, 192})));
  });
}

TEST(Sharding, EvaluationFreesWhatItGathered) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context, {.sharding = strategy(ShardingStrategy::ShardParameters)}};
    EvenNet net{3};
    accelerator.prepare(net);
    const at::NoGradGuard no_grad;
    const auto x = at::ones({2, 192});
    const auto first = net(x), second = net(x);
    EXPECT_TRUE(at::equal(first, second));
    EXPECT_EQ(accelerator.memory().usage(MemoryCategory::Gathered).now, 0);
  });
}

TEST(ShardPlan, ClassNamesChooseUnits) {
  EvenNet net{3};
  auto options = strategy(ShardingStrategy::ShardParameters);
  options.wrap = {.kind = WrapPolicy::Kind::ByClass, .classes = {"EvenBlock"}};
  const auto plan = detail::plan_shards(*net, options);
  ASSERT_EQ(plan.units.size(), 4u);
  EXPECT_EQ(plan.units[0].name, "");
  EXPECT_EQ(plan.units[3].name, "block2");
}

TEST(ShardPlan, AnUnknownClassIsNamedWithTheNearest) {
  EvenNet net{1};
  auto options = strategy(ShardingStrategy::ShardParameters);
  options.wrap = {.kind = WrapPolicy::Kind::ByClass, .classes = {"EvenBlok"}};
  try {
    (void)detail::plan_shards(*net, options);
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::InvalidConfig);
    EXPECT_THAT(failure.what(), HasSubstr("did you mean EvenBlock"));
  }
}

TEST(ShardPlan, AClassThatIsNoUnitIsRefused) {
  EvenNet net{1};
  auto options = strategy(ShardingStrategy::ShardParameters);
  options.wrap = {.kind = WrapPolicy::Kind::ByClass, .classes = {"Linear"}};
  EXPECT_THROW((void)detail::plan_shards(*net, options), Failure);
}

TEST(ShardPlan, SizeChoosesUnitsWithEnoughParameters) {
  EvenNet net{3};
  auto options = strategy(ShardingStrategy::ShardParameters);
  options.wrap = {.kind = WrapPolicy::Kind::BySize, .min_num_params = kBlock};
  EXPECT_EQ(detail::plan_shards(*net, options).units.size(), 4u);
  options.wrap.min_num_params = kBlock + 1;
  EXPECT_EQ(detail::plan_shards(*net, options).units.size(), 1u);
}

TEST(ShardPlan, AModelWithoutUnitsStaysWholeWithANotice) {
  torch::nn::Linear net{8, 8};
  const auto plan = detail::plan_shards(*net, strategy(ShardingStrategy::ShardParameters));
  EXPECT_TRUE(plan.units.empty());
  ASSERT_EQ(plan.notices.size(), 1u);
  for (const auto& group : plan.groups) EXPECT_FALSE(group.freed);
}

}  // namespace
}  // namespace troupe

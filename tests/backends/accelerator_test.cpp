#include "fake_context.hpp"
#include "small_net.hpp"

#include <troupe/accelerator.hpp>

#include <ATen/autocast_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <mutex>

namespace troupe {
namespace {

using test::run_ranks;
using test::SmallNetImpl;
using testing::HasSubstr;

/// A scalar parameter and its optimizer, so that updates can be counted.
struct One : torch::nn::Module {
  One() : w(register_parameter("w", at::ones({2}))) {}
  at::Tensor w;
};

TEST(Accelerator, OptimizerAndSchedulerActOnTheLastStepOfAWindowOnly) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 3}};
    auto model = std::make_shared<One>();
    AdamW optimizer{model->parameters(), {.lr = 1}};
    auto scheduler = get_linear_schedule_with_warmup(optimizer, 0, 100);
    accelerator.prepare(model, optimizer, scheduler);
    std::vector<bool> sync;
    for (int i = 0; i < 7; ++i) {
      const auto window = accelerator.accumulate(model);
      const auto before = model->w.detach().clone();
      accelerator.backward(model->w.sum());
      optimizer.step();
      scheduler.step();
      sync.push_back(accelerator.sync_gradients());
      EXPECT_EQ(!at::equal(before, model->w.detach()), sync.back());
      optimizer.zero_grad();
      EXPECT_EQ(!model->w.grad().defined(), sync.back());
    }
    EXPECT_EQ(sync, (std::vector<bool>{false, false, true, false, false, true, false}));
    EXPECT_EQ(scheduler.last_step(), 2);
  });
}

TEST(Accelerator, AWindowsGradientIsTheMeanOfItsBatchesAndOfAllRanks) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 2}};
    auto model = std::make_shared<One>();
    accelerator.prepare(model);
    for (int i = 0; i < 2; ++i) {
      const auto window = accelerator.accumulate();
      accelerator.backward(model->w.sum() * (1 + i + 10 * context.world_rank()));
    }
    EXPECT_TRUE(at::equal(model->w.grad(), at::full({2}, (1 + 2 + 11 + 12) / 4.0)));
  });
}

TEST(Accelerator, ClipsAsTorchDoesAndReturnsTheNormBefore) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto a = at::ones({3}).requires_grad_(true);
    auto b = at::ones({2, 2}).requires_grad_(true);
    a.mutable_grad() = at::tensor({3.0f, 0.0f, 4.0f});
    b.mutable_grad() = at::full({2, 2}, 6.0f);
    const double norm = std::sqrt(25.0 + 4 * 36.0);
    EXPECT_NEAR(accelerator.clip_grad_norm({a, b}, 2.0), norm, 1e-5);
    EXPECT_NEAR(a.grad()[2].item<double>(), 4 * 2.0 / (norm + 1e-6), 1e-6);
    EXPECT_NEAR(b.grad()[1][1].item<double>(), 6 * 2.0 / (norm + 1e-6), 1e-6);
    const auto before = a.grad().clone();
    EXPECT_NEAR(accelerator.clip_grad_norm({a, b}, 2.5), 2.0, 1e-5);
    EXPECT_TRUE(at::equal(a.grad(), before));
  });
}

TEST(Accelerator, ClippingPassesNotANumberOn) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto a = at::ones({2}).requires_grad_(true);
    a.mutable_grad() = at::tensor({NAN, 1.0f});
    EXPECT_TRUE(std::isnan(accelerator.clip_grad_norm({a}, 1.0)));
    EXPECT_TRUE(std::isnan(a.grad()[1].item<double>()));
  });
}

struct Collectives : testing::TestWithParam<int> {};

TEST_P(Collectives, GatherStacksRowsInRankOrder) {
  run_ranks(GetParam(), [](TrainContext& context) {
    Accelerator accelerator{context};
    const auto all = accelerator.gather(at::full({2, 3}, context.world_rank(), at::kLong));
    ASSERT_EQ(all.sizes().vec(), (std::vector<std::int64_t>{2 * context.world_size(), 3}));
    for (int r = 0; r < context.world_size(); ++r) EXPECT_TRUE(at::equal(all.narrow(0, 2 * r, 2), at::full({2, 3}, r, at::kLong)));
    const auto scalars = accelerator.gather(at::full({}, context.world_rank(), at::kFloat));
    EXPECT_EQ(scalars.numel(), context.world_size());
  });
}

TEST_P(Collectives, ReduceSumsAndAverages) {
  run_ranks(GetParam(), [](TrainContext& context) {
    Accelerator accelerator{context};
    const int n = context.world_size();
    const auto mine = at::full({4}, 1.0 + context.world_rank(), at::kFloat);
    EXPECT_TRUE(at::equal(accelerator.reduce(mine), at::full({4}, n * (n + 1) / 2.0, at::kFloat)));
    EXPECT_TRUE(at::equal(accelerator.reduce(mine, ReduceOp::Mean), at::full({4}, (n + 1) / 2.0, at::kFloat)));
    EXPECT_TRUE(at::equal(mine, at::full({4}, 1.0 + context.world_rank(), at::kFloat)));
  });
}

TEST_P(Collectives, PadsToTheLongestOfAllRanks) {
  run_ranks(GetParam(), [](TrainContext& context) {
    Accelerator accelerator{context};
    const auto own = 1 + context.world_rank();
    const auto mine = at::ones({2, own});
    const auto last = accelerator.pad_across_processes(mine, 1, -1);
    ASSERT_EQ(last.size(1), context.world_size());
    EXPECT_TRUE(at::equal(last.narrow(1, 0, own), mine));
    if (own < context.world_size()) {
      EXPECT_EQ(last[0][-1].item<float>(), -1);
    }
    const auto first = accelerator.pad_across_processes(mine, 1, -1, true);
    EXPECT_TRUE(at::equal(first.narrow(1, context.world_size() - own, own), mine));
  });
}

TEST_P(Collectives, BroadcastGivesEveryoneTheSourcesTensor) {
  run_ranks(GetParam(), [](TrainContext& context) {
    Accelerator accelerator{context};
    const int source = context.world_size() - 1;
    EXPECT_EQ(accelerator.broadcast(at::full({3}, context.world_rank()), source)[1].item<int>(), source);
    EXPECT_THROW((void)accelerator.broadcast(at::ones({1}), context.world_size()), Failure);
  });
}

TEST_P(Collectives, TheMainProcessGoesFirst) {
  std::atomic<bool> main_done = false;
  run_ranks(GetParam(), [&](TrainContext& context) {
    Accelerator accelerator{context};
    const auto scope = accelerator.main_process_first();
    if (accelerator.is_main_process()) {
      std::this_thread::sleep_for(std::chrono::milliseconds{30});
      main_done = true;
    } else {
      EXPECT_TRUE(main_done);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Worlds, Collectives, testing::Values(1, 2, 3), testing::PrintToStringParamName());

TEST(Accelerator, GatherNamesRanksAndShapesThatDiffer) {
  try {
    run_ranks(2, [](TrainContext& context) {
      Accelerator accelerator{context};
      (void)accelerator.gather(at::ones({8 - context.world_rank(), 2}));
    });
    FAIL() << "no failure";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::CollectiveMismatch);
    EXPECT_THAT(failure.what(), HasSubstr("rank 0 has F32 [8, 2], rank 1 has F32 [7, 2]"));
    EXPECT_THAT(failure.what(), HasSubstr("pad_across_processes"));
  }
}

TEST(Accelerator, GatherNamesTypesThatDiffer) {
  try {
    run_ranks(2, [](TrainContext& context) {
      Accelerator accelerator{context};
      (void)accelerator.gather(at::ones({2}, context.world_rank() ? at::kInt : at::kFloat));
    });
    FAIL() << "no failure";
  } catch (const Failure& failure) {
    EXPECT_THAT(failure.what(), HasSubstr("rank 0 has F32 [2], rank 1 has I32 [2]"));
  }
}

TEST(Accelerator, AutocastComputesInBf16InsideItsScopeOnly) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context, {.mixed_precision = Precision::BF16}};
    auto net = std::make_shared<SmallNetImpl>();
    const auto x = at::ones({2, 6});
    {
      const auto outer = accelerator.autocast();
      { const auto inner = accelerator.autocast(); }
      EXPECT_EQ(net->forward(x).scalar_type(), at::kBFloat16);
    }
    EXPECT_EQ(net->forward(x).scalar_type(), at::kFloat);
    Accelerator plain{context};
    const auto nothing = plain.autocast();
    EXPECT_EQ(net->forward(x).scalar_type(), at::kFloat);
  });
}

TEST(Accelerator, RefusesOptionsOutOfRange) {
  run_ranks(1, [](TrainContext& context) {
    EXPECT_THROW((Accelerator{context, {.gradient_accumulation_steps = 0}}), Failure);
    EXPECT_THROW((Accelerator{context, {.ddp = {.bucket_cap_mb = 0}}}), Failure);
  });
  EXPECT_THROW((void)precision_from("fp8"), Failure);
  EXPECT_EQ(precision_from("bf16"), Precision::BF16);
}

TEST(RankGenerator, DrawsDifferentNumbersPerRankWhenDeviceSpecificAndTheSameOnesAgain) {
  const auto draw = [](bool device_specific) {
    std::mutex mutex;
    std::vector<at::Tensor> drawn(3);
    run_ranks(3, [&](TrainContext& context) {
      set_seed(11, device_specific, context.world_rank());
      const auto numbers = at::randn({5}, rank_generator());
      const std::scoped_lock lock{mutex};
      drawn[static_cast<std::size_t>(context.world_rank())] = numbers;
    });
    return drawn;
  };
  const auto own = draw(true);
  const auto again = draw(true);
  const auto same = draw(false);
  for (std::size_t r = 0; r < 3; ++r) EXPECT_TRUE(at::equal(own[r], again[r]));
  EXPECT_FALSE(at::equal(own[0], own[1]));
  EXPECT_FALSE(at::equal(own[1], own[2]));
  EXPECT_TRUE(at::equal(same[0], same[1]));
}

struct TemporaryDirectory {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("troupe_accelerator_" + std::to_string(::getpid()));
  TemporaryDirectory() { std::filesystem::remove_all(path); }
  ~TemporaryDirectory() { std::filesystem::remove_all(path); }
};

/// Trains steps [from, to) with noise from the rank's generator and returns the weights.
struct Training {
  TrainContext& context;
  Accelerator accelerator{context};
  std::shared_ptr<SmallNetImpl> net;
  std::unique_ptr<AdamW> optimizer;
  std::unique_ptr<LRScheduler> scheduler;

  explicit Training(TrainContext& c, std::uint64_t seed) : context(c) {
    set_seed(seed);
    net = std::make_shared<SmallNetImpl>();
    set_seed(seed, true, c.world_rank());
    optimizer = std::make_unique<AdamW>(net->parameters(), AdamWOptions{.lr = 0.02});
    scheduler = std::make_unique<LRScheduler>(get_linear_schedule_with_warmup(*optimizer, 2, 10));
    accelerator.prepare(net, *optimizer, *scheduler);
  }
  std::vector<at::Tensor> train(int steps) {
    for (int i = 0; i < steps; ++i) {
      const auto window = accelerator.accumulate();
      const auto x = at::randn({4, 6}, rank_generator());
      accelerator.backward(net->forward(x).square().mean());
      optimizer->step();
      scheduler->step();
      optimizer->zero_grad();
    }
    return net->parameters();
  }
};

struct Resume : testing::TestWithParam<int> {};

TEST_P(Resume, ContinuesBitForBit) {
  TemporaryDirectory directory;
  run_ranks(GetParam(), [&](TrainContext& context) {
    Training whole{context, 5};
    const auto expected = whole.train(10);
    {
      Training first{context, 5};
      first.train(5);
      first.accelerator.save_state(directory.path);
    }
    Training second{context, 99};  // nothing of its own start may show
    second.accelerator.load_state(directory.path);
    const auto resumed = second.train(5);
    EXPECT_EQ(second.scheduler->last_step(), 10);
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(expected[i], resumed[i])) << i;
  });
}

INSTANTIATE_TEST_SUITE_P(Worlds, Resume, testing::Values(1, 2), testing::PrintToStringParamName());

TEST(SaveState, RefusesInsideAnOpenWindow) {
  TemporaryDirectory directory;
  run_ranks(1, [&](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 2}};
    const auto window = accelerator.accumulate();
    EXPECT_THROW(accelerator.save_state(directory.path), Failure);
  });
}

TEST(LoadState, SaysWhatDoesNotFit) {
  TemporaryDirectory directory;
  run_ranks(1, [&](TrainContext& context) {
    Training run{context, 5};
    run.train(1);
    EXPECT_THROW(run.accelerator.load_state(directory.path), Failure);
    run.accelerator.save_state(directory.path);
    Accelerator other{context};
    auto wide = std::make_shared<SmallNetImpl>(9);
    AdamW optimizer{wide->parameters(), {}};
    other.prepare(wide, optimizer);
    try {
      other.load_state(directory.path);
      FAIL() << "no failure";
    } catch (const Failure& failure) {
      EXPECT_THAT(failure.what(), HasSubstr("holds 1 schedulers, but 0 were prepared"));
    }
    auto scheduler = get_constant_schedule_with_warmup(optimizer, 0);
    other.prepare(scheduler);
    try {
      other.load_state(directory.path);
      FAIL() << "no failure";
    } catch (const Failure& failure) {
      EXPECT_THAT(failure.what(), HasSubstr("model.safetensors: tensor first.weight is [8, 6], in the model [9, 6]"));
    }
  });
}

}  // namespace
}  // namespace troupe

// Batch sizes that fit on every rank, wherever a rank runs out of memory.
#include "fake_context.hpp"
#include "small_net.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/batch_size.hpp>

#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tanh.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>
#include <mutex>
#include <new>

namespace troupe {
namespace {

using test::run_ranks;
using test::SmallNetImpl;
using testing::ElementsAre;
using testing::HasSubstr;

enum class Where { Start, Prepare, Forward, Backward, Optimizer, Metrics, End };
constexpr Where everywhere[] = {Where::Start,     Where::Prepare, Where::Forward, Where::Backward,
                                Where::Optimizer, Where::Metrics, Where::End};

/// Trains two steps; `run_out` is called at every place.
void train(TrainContext& context, int batch_size, const std::function<void(Where, int step)>& run_out,
           ShardingStrategy strategy = ShardingStrategy::Replicate) {
  run_out(Where::Start, 0);
  Accelerator accelerator{context, {.ddp = {.bucket_cap_mb = 1e-4}, .sharding = {.strategy = strategy}}};
  set_seed(3);
  auto net = std::make_shared<SmallNetImpl>();
  AdamW optimizer{net->parameters(), {}};
  accelerator.prepare(net);
  run_out(Where::Prepare, 0);
  accelerator.prepare(optimizer);
  for (int step = 0; step < 2; ++step) {
    auto hidden = at::tanh(net->first->forward(at::ones({batch_size, 6})));
    // Backward is half done: the buckets of the later layers are under way.
    hidden.register_hook([&, step](at::Tensor) { run_out(Where::Backward, step); });
    run_out(Where::Forward, step);
    accelerator.backward(net->spare(net->second(hidden)).square().mean());
    run_out(Where::Optimizer, step);
    optimizer.step();
    optimizer.zero_grad();
    (void)accelerator.gather(at::ones({2}));
    run_out(Where::Metrics, step);
    const auto scope = accelerator.main_process_first();
  }
  run_out(Where::End, 0);
}

using Case = std::tuple<int, int, Where, ShardingStrategy>;  // ranks, step
struct RunningOut : testing::TestWithParam<Case> {};

TEST_P(RunningOut, OnOneRankMakesAllRanksTryLess) {
  const auto [ranks, step, where, strategy] = GetParam();
  for (int culprit = 0; culprit < ranks; ++culprit) {
    run_ranks(ranks, [&, step = step, where = where, strategy = strategy](TrainContext& context) {
      std::vector<int> tried;
      const auto found = find_executable_batch_size(
          context,
          [&](TrainContext& attempt, int batch_size) {
            tried.push_back(batch_size);
            train(attempt, batch_size, [&](Where place, int now) {
              if (place == where && now == step && batch_size > 5 && context.world_rank() == culprit) throw std::bad_alloc{};
            }, strategy);
          },
          {.starting_batch_size = 16, .reduce_fn = [](int size) { return size / 2; }});
      EXPECT_EQ(found, 4);
      EXPECT_THAT(tried, ElementsAre(16, 8, 4));
      // The group is as good as new.
      Accelerator accelerator{context};
      EXPECT_EQ(accelerator.reduce(at::ones({1})).item<double>(), context.world_size());
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Places, RunningOut,
                         testing::Combine(testing::Values(2, 3), testing::Values(0), testing::ValuesIn(everywhere),
                                          testing::Values(ShardingStrategy::Replicate)));
INSTANTIATE_TEST_SUITE_P(PlacesOfTheSecondStep, RunningOut,
                         testing::Combine(testing::Values(2), testing::Values(1),
                                          testing::Values(Where::Forward, Where::Backward, Where::Optimizer, Where::Metrics),
                                          testing::Values(ShardingStrategy::Replicate, ShardingStrategy::ShardOptimizer,
                                                          ShardingStrategy::ShardGradients)));

TEST(FindExecutableBatchSize, TakesNineTenthsByDefault) {
  run_ranks(1, [](TrainContext& context) {
    std::vector<int> tried;
    const auto found = find_executable_batch_size(context, [&](TrainContext&, int batch_size) {
      tried.push_back(batch_size);
      if (batch_size > 100) throw std::runtime_error{"DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"};
    });
    EXPECT_EQ(found, 92);  // as accelerate 1.15: 128, 115, 103, 92
    EXPECT_THAT(tried, ElementsAre(128, 115, 103, 92));
  });
}

TEST(FindExecutableBatchSize, FailsOnAllRanksWhenNothingFits) {
  std::atomic<int> failures = 0;
  run_ranks(2, [&](TrainContext& context) {
    try {
      (void)find_executable_batch_size(
          context,
          [&](TrainContext&, int) {
            if (context.world_rank() == 1) throw std::bad_alloc{};
          },
          {.starting_batch_size = 3});
    } catch (const Failure& failure) {
      EXPECT_THAT(failure.what(), HasSubstr("from 3 down to 1"));
      ++failures;
    }
  });
  EXPECT_EQ(failures, 2);
}

TEST(FindExecutableBatchSize, PassesOtherErrorsOn) {
  run_ranks(1, [](TrainContext& context) {
    int calls = 0;
    EXPECT_THROW((void)find_executable_batch_size(context,
                                                  [&](TrainContext&, int) {
                                                    ++calls;
                                                    throw std::runtime_error{"planted"};
                                                  }),
                 std::runtime_error);
    EXPECT_EQ(calls, 1);
  });
}

TEST(FindExecutableBatchSize, RefusesAReductionThatDoesNotReduce) {
  run_ranks(1, [](TrainContext& context) {
    EXPECT_THROW((void)find_executable_batch_size(
                     context, [](TrainContext&, int) { throw std::bad_alloc{}; }, {.reduce_fn = [](int size) { return size; }}),
                 Failure);
  });
}

TEST(FindExecutableBatchSize, RanksAgreeOnTheSmallestNextSize) {
  run_ranks(2, [](TrainContext& context) {
    const auto found = find_executable_batch_size(
        context,
        [](TrainContext&, int size) {
          if (size > 10) throw std::bad_alloc{};
        },
        {.starting_batch_size = 12, .reduce_fn = [&](int size) { return size - 3 - context.world_rank(); }});
    EXPECT_EQ(found, 8);
  });
}

TEST(IsOutOfMemory, KnowsWhatAllocatorsThrow) {
  EXPECT_TRUE(is_out_of_memory(std::bad_alloc{}));
  EXPECT_TRUE(is_out_of_memory(std::runtime_error{"CUDA out of memory. Tried to allocate 2 GiB"}));
  EXPECT_FALSE(is_out_of_memory(std::runtime_error{"shape mismatch"}));
  try {
    (void)at::ones({std::int64_t{1} << 48});
    FAIL() << "no failure";
  } catch (const std::exception& error) {
    EXPECT_TRUE(is_out_of_memory(error)) << error.what();
  }
}

}  // namespace
}  // namespace troupe

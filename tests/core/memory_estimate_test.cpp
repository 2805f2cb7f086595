#include <gtest/gtest.h>

#include <troupe/errors.hpp>
#include <troupe/memory_estimate.hpp>

namespace troupe {
namespace {

constexpr std::int64_t psi = 1'200'000;
constexpr ModelSize model{.num_params = psi, .largest_unit = 100'000, .root_unit = 20'000, .num_units = 12};

MemoryEstimate estimate(ShardingStrategy strategy, int ranks, std::optional<DType> param = {}, StateTypes types = {}) {
  ShardingOptions options;
  options.strategy = strategy;
  options.param_dtype = param;
  return estimate_memory(model, options, ranks, types);
}

using enum ShardingStrategy;

TEST(MemoryEstimate, FollowsZeroArithmeticInFp32) {
  for (const int n : {1, 2, 4}) {
    EXPECT_EQ(estimate(Replicate, n).resident(), 16 * psi);
    EXPECT_EQ(estimate(ShardOptimizer, n).resident(), 8 * psi + 8 * psi / n);
    EXPECT_EQ(estimate(ShardGradients, n).resident(), 4 * psi + 12 * psi / n);
    EXPECT_EQ(estimate(ShardParameters, n).resident(), 16 * psi / n);
  }
  EXPECT_EQ(estimate(ShardOptimizer, 2).formula, "8Ψ + 8Ψ/N");
  EXPECT_EQ(estimate(ShardParameters, 2).formula, "16Ψ/N");
}

TEST(MemoryEstimate, FollowsItWithSixteenBitParameters) {
  const StateTypes sixteen{.grad_dtype = DType::BF16};
  EXPECT_EQ(estimate(ShardOptimizer, 4, DType::BF16, sixteen).resident(), 4 * psi + 12 * psi / 4);
  EXPECT_EQ(estimate(ShardGradients, 4, DType::BF16, sixteen).resident(), 2 * psi + 14 * psi / 4);
  EXPECT_EQ(estimate(ShardOptimizer, 4, DType::BF16).resident(), 6 * psi + 12 * psi / 4);
  EXPECT_EQ(estimate(ShardGradients, 4, DType::BF16).resident(), 2 * psi + 16 * psi / 4);
  EXPECT_EQ(estimate(ShardParameters, 4, DType::BF16).resident(), 16 * psi / 4);
  EXPECT_EQ(estimate(Replicate, 4, DType::BF16, sixteen).resident(), 16 * psi);
}

TEST(MemoryEstimate, GathersTheLargestUnitAndTheRoot) {
  // (3 b_p + b_r) of the largest unit, b_r of it over N, b_p of the root.
  EXPECT_EQ(estimate(ShardParameters, 4, DType::BF16).gathered, (3 * 2 + 4) * 100'000 + 4 * 100'000 / 4 + 2 * 20'000);
  EXPECT_EQ(estimate(ShardParameters, 4).gathered, (3 * 4 + 4) * 100'000 + 4 * 100'000 / 4 + 4 * 20'000);
  ShardingOptions alone;
  alone.strategy = ShardParameters;
  alone.backward_prefetch = false;
  EXPECT_EQ(estimate_memory(model, alone, 4).gathered, (2 * 4 + 4) * 100'000 + 4 * 100'000 / 4 + 4 * 20'000);
  // A root larger than the layers: its own gradients are the peak.
  EXPECT_EQ(estimate_memory({.num_params = psi, .largest_unit = 10, .root_unit = 1'000'000}, alone, 4).gathered, (4 + 4 + 4 + 1) * 1'000'000);
  alone.reshard_after_forward = false;
  EXPECT_GT(estimate_memory(model, alone, 4).gathered, 4 * psi);
  EXPECT_EQ(estimate(ShardParameters, 1).gathered, 0);
}

TEST(MemoryEstimate, SharesInsideGroupsAndRoundsUp) {
  ShardingOptions hybrid;
  hybrid.strategy = ShardParameters;
  hybrid.shard_group_size = 2;
  EXPECT_EQ(estimate_memory(model, hybrid, 4).resident(), 16 * psi / 2);
  hybrid.shard_group_size = 3;
  EXPECT_THROW((void)estimate_memory(model, hybrid, 4), Failure);
  EXPECT_THROW((void)estimate(Replicate, 0), Failure);
  ShardingOptions odd;
  odd.strategy = ShardParameters;
  EXPECT_EQ(estimate_memory({.num_params = 7}, odd, 4).resident(), 16 * 2);
}

TEST(MemoryEstimate, CountsFrozenParametersOffloadAndOtherOptimizers) {
  EXPECT_EQ(estimate(Replicate, 2, {}, {.num_states = 1}).resident(), 12 * psi);
  ShardingOptions options;
  options.strategy = ShardParameters;
  EXPECT_EQ(estimate_memory({.num_params = 0, .num_frozen = 1000}, options, 2).resident(), 2000);
  options.offload_optimizer.place = Offload::Place::Host;
  const auto offloaded = estimate_memory(model, options, 2);
  EXPECT_EQ(offloaded.resident(), 8 * psi / 2);
  EXPECT_EQ(offloaded.host, 8 * psi / 2);
  // On disk go the fp32 masters of 16-bit parameters, too: what is left is those, and gradients.
  options.offload_optimizer.place = Offload::Place::Disk;
  options.param_dtype = DType::BF16;
  const auto masters = estimate_memory(model, options, 2);
  EXPECT_EQ(masters.params, 2 * psi / 2);
  EXPECT_EQ(masters.host, 12 * psi / 2);
  options.offload_params.place = Offload::Place::Disk;
  EXPECT_EQ(estimate_memory(model, options, 2).params, 0);
  EXPECT_EQ(estimate_memory(model, options, 2).host, 12 * psi / 2);
}

}  // namespace
}  // namespace troupe

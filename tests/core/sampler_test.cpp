#include <gtest/gtest.h>

#include <algorithm>
#include <troupe/data/samplers.hpp>
#include <troupe/errors.hpp>
#include <vector>

namespace troupe {
namespace {

using Order = std::vector<std::int64_t>;

// From torch 2.11: g = torch.Generator().manual_seed(7); s = RandomSampler(range(10), generator=g);
// list(s) three times.
const std::vector<Order> kTorchEpochs{
    {5, 0, 3, 4, 1, 7, 9, 6, 8, 2}, {3, 7, 6, 2, 9, 0, 5, 4, 1, 8}, {6, 0, 7, 1, 5, 3, 4, 9, 8, 2}};

TEST(RandomSampler, GivesTorchsOrderEpochAfterEpoch) {
  RandomSampler sampler{10, 7};
  for (std::size_t e = 0; e < kTorchEpochs.size(); ++e) {
    EXPECT_EQ(sampler.order(static_cast<std::int64_t>(e)), kTorchEpochs[e]);
  }
}

TEST(RandomSampler, GivesTheSameOrderWhenAnEpochIsReachedInAnotherWay) {
  RandomSampler sampler{10, 7};
  for (const std::size_t e : {2u, 0u, 0u, 2u, 1u})
    EXPECT_EQ(sampler.order(static_cast<std::int64_t>(e)), kTorchEpochs[e]);
}

TEST(RandomSampler, RefusesAnEmptyDataSetAsTorchDoes) {
  EXPECT_THROW((RandomSampler{0, 7}), Failure);
  EXPECT_THROW((SeedableRandomSampler{0, 7}), Failure);
}

TEST(SeedableRandomSampler, DependsOnSeedPlusEpochOnly) {
  SeedableRandomSampler a{50, 3}, b{50, 4};
  EXPECT_EQ(a.order(1), b.order(0));
  EXPECT_NE(a.order(0), a.order(1));
  auto sorted = a.order(5);
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted, SequentialSampler{50}.order(0));
}

TEST(DistributedSampler, RepeatsAnOrderThatIsShorterThanTheWorld) {
  for (int rank = 0; rank < 5; ++rank) {
    DistributedSampler sampler{2, {.rank = rank, .world_size = 5, .shuffle = false}};
    EXPECT_EQ(sampler.order(0), Order{rank % 2});
  }
}

TEST(DistributedSampler, GivesNothingOfAnEmptyDataSet) {
  DistributedSampler sampler{0, {.rank = 1, .world_size = 2, .shuffle = true}};
  EXPECT_EQ(sampler.order(0), Order{});
}

TEST(DistributedSampler, RefusesARankOutsideTheWorld) {
  EXPECT_THROW((DistributedSampler{4, {.rank = 2, .world_size = 2}}), Failure);
}

TEST(Samplers, RefuseANegativeEpoch) {
  EXPECT_THROW((void)(RandomSampler{4, 0}.order(-1)), Failure);
}

}  // namespace
}  // namespace troupe

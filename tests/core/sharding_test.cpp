#include <gtest/gtest.h>

#include <set>
#include <string>
#include <troupe/data/sharding.hpp>
#include <troupe/errors.hpp>
#include <vector>

namespace troupe {
namespace {

using Batches = std::vector<std::vector<std::int64_t>>;

Batches batches(const BatchSharding& sharding) {
  Batches all;
  for (std::int64_t b = 0; b < num_batches(sharding); ++b) {
    const auto range = batch_at(sharding, b);
    auto& batch = all.emplace_back();
    for (std::int64_t p = range.first; p < range.first + range.count; ++p)
      batch.push_back(p % sharding.num_samples);
  }
  return all;
}

std::string failure_of(const BatchSharding& sharding) {
  try {
    validate(sharding);
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::InvalidArgument);
    return failure.what();
  }
  return "";
}

TEST(Sharding, GivesOneRankEveryBatchAndTheShortOneAtTheEnd) {
  EXPECT_EQ(batches({.num_samples = 5, .batch_size = 2}), (Batches{{0, 1}, {2, 3}, {4}}));
  EXPECT_EQ(batches({.num_samples = 5, .batch_size = 2, .drop_last = true}),
            (Batches{{0, 1}, {2, 3}}));
}

TEST(Sharding, DealsBatchesInTurnAndFillsTheLastRoundFromTheBeginning) {
  const BatchSharding second{.num_samples = 7, .batch_size = 2, .rank = 1, .world_size = 3};
  EXPECT_EQ(batches(second), (Batches{{2, 3}, {1, 2}}));
}

TEST(Sharding, RepeatsTheDataSetWhenItIsSmallerThanOneBatch) {
  const BatchSharding second{.num_samples = 2, .batch_size = 3, .rank = 1, .world_size = 2};
  EXPECT_EQ(batches(second), (Batches{{1, 0, 1}}));
}

TEST(Sharding, LeavesRanksWithoutASampleOutWhenBatchesNeedNotBeEven) {
  BatchSharding s{.num_samples = 3, .batch_size = 2, .world_size = 3, .even_batches = false};
  EXPECT_EQ(batches(s), (Batches{{0, 1}}));
  s.rank = 1;
  EXPECT_EQ(batches(s), (Batches{{2}}));
  s.rank = 2;
  EXPECT_EQ(batches(s), Batches{});
}

TEST(Sharding, CutsEachBatchIntoSlicesWhenBatchesAreSplit) {
  const BatchSharding second{
      .num_samples = 6, .batch_size = 4, .rank = 1, .world_size = 2, .split_batches = true};
  EXPECT_EQ(batches(second), (Batches{{2, 3}, {0, 1}}));
}

TEST(Sharding, HasNoBatchesWithoutSamples) {
  for (const bool split : {false, true}) {
    EXPECT_EQ(
        num_batches({.num_samples = 0, .batch_size = 2, .world_size = 2, .split_batches = split}),
        0);
  }
}

TEST(Sharding, CountsTheRealSamplesOfTheLastGlobalBatch) {
  EXPECT_EQ(remainder({.num_samples = 7, .batch_size = 2, .world_size = 3}), 1);
  EXPECT_EQ(remainder({.num_samples = 12, .batch_size = 2, .world_size = 3}), 0);
  EXPECT_EQ(remainder({.num_samples = 7, .batch_size = 2, .drop_last = true, .world_size = 3}), -1);
}

// Every sample exactly once per epoch, apart from what is filled up or dropped.
TEST(Sharding, CoversEverySampleWhateverTheNumbers) {
  for (std::int64_t n = 1; n <= 20; ++n) {
    for (int world = 1; world <= 4; ++world) {
      for (const std::int64_t size : {1, 2, 4, 12}) {
        for (const bool even : {false, true}) {
          std::multiset<std::int64_t> seen;
          BatchSharding s{
              .num_samples = n, .batch_size = size, .world_size = world, .even_batches = even};
          for (s.rank = 0; s.rank < world; ++s.rank) {
            for (const auto& batch : batches(s)) seen.insert(batch.begin(), batch.end());
          }
          EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(),
                    static_cast<std::size_t>(n));
          if (even && world > 1) {
            EXPECT_EQ(seen.size() % static_cast<std::size_t>(size * world), 0u);
          } else {
            EXPECT_EQ(seen.size(), static_cast<std::size_t>(n));
          }
        }
      }
    }
  }
}

TEST(Sharding, NamesTheFieldThatIsWrong) {
  EXPECT_NE(failure_of({.batch_size = 0}).find("batch_size = 0"), std::string::npos);
  EXPECT_NE(failure_of({.world_size = 0}).find("world_size = 0"), std::string::npos);
  EXPECT_NE(failure_of({.rank = 2, .world_size = 2}).find("rank = 2; it must be from 0 to 1"),
            std::string::npos);
  EXPECT_NE(failure_of({.batch_size = std::int64_t{1} << 62, .world_size = 4}).find("overflows"),
            std::string::npos);
  EXPECT_NE(failure_of({.batch_size = 5, .world_size = 2, .split_batches = true})
                .find("multiple of the world size, 2"),
            std::string::npos);
  EXPECT_EQ(failure_of({.batch_size = 6, .world_size = 2, .split_batches = true}), "");
}

}  // namespace
}  // namespace troupe

#include <troupe/errors.hpp>
#include <troupe/split.hpp>

#include <gtest/gtest.h>

#include <vector>

namespace troupe {
namespace {

TEST(SplitRange, SharesAreContiguousCompleteAndDifferByAtMostOne) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (std::int64_t length = 0; length <= 40; ++length) {
      std::int64_t next = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto share = split_range(length, ranks, rank);
        EXPECT_EQ(share.first, next);
        EXPECT_EQ(share.count, length / ranks + (rank < length % ranks ? 1 : 0));
        EXPECT_LE(share.count, longest_split(length, ranks));
        next += share.count;
      }
      EXPECT_EQ(next, length);
    }
  }
}

// What accelerate 1.15's split_between_processes gives 4 processes of 10 items.
TEST(SplitRange, DealsAsAccelerateDoes) {
  const std::vector<IndexRange> expected{{0, 3}, {3, 3}, {6, 2}, {8, 2}};
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(split_range(10, 4, rank), expected[static_cast<std::size_t>(rank)]);
  EXPECT_EQ(longest_split(10, 4), 3);
}

TEST(SplitRange, RefusesRanksOutOfRange) {
  EXPECT_THROW((void)split_range(-1, 2, 0), Failure);
  EXPECT_THROW((void)split_range(4, 2, 2), Failure);
  EXPECT_THROW((void)split_range(4, 2, -1), Failure);
  EXPECT_THROW((void)split_range(4, 0, 0), Failure);
}

}  // namespace
}  // namespace troupe

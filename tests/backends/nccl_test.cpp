// The NCCL communicator's logic over a host-memory stand-in for NCCL and CUDA (tests/backends/host_nccl.hpp).
#include "host_nccl.hpp"
#include "nccl_communicator.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <thread>
#include <vector>

namespace troupe {
namespace {

using std::chrono::milliseconds;

/// Runs `body` on `size` rank threads, each with its seat of one group.
void on_ranks(int size, milliseconds timeout, const std::function<void(Communicator&)>& body) {
  ncclUniqueId id;
  ASSERT_EQ(host_nccl::nccl().GetUniqueId(&id), ncclSuccess);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.emplace_back([&, rank] {
      const auto seat = make_nccl_communicator(host_nccl::nccl(), host_nccl::gpu(),
                                               {.id = id, .rank = rank, .size = size, .device = 0, .timeout = timeout});
      body(*seat);
    });
  }
  for (auto& rank : ranks) rank.join();
  EXPECT_EQ(host_nccl::num_live(), 0) << "streams, events or communicators left";
}

template <class T>
Buffer buffer(std::vector<T>& values, DType dtype) {
  return {values.data(), values.size() * sizeof(T), dtype};
}

class NcclLogic : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(NcclLogic, ReducesGathersScattersAndBroadcasts) {
  const auto [size, count] = GetParam();
  on_ranks(size, milliseconds(20'000), [n = static_cast<std::size_t>(count)](Communicator& group) {
    const auto ranks = static_cast<std::size_t>(group.size());
    const auto rank = static_cast<std::size_t>(group.rank());
    const float sum = static_cast<float>(ranks * (ranks + 1)) / 2;

    std::vector<float> values(n, static_cast<float>(rank + 1));
    ASSERT_TRUE(group.all_reduce(buffer(values, DType::F32), ReduceOp::Sum).wait().ok());
    EXPECT_EQ(values, std::vector<float>(n, sum));
    values.assign(n, static_cast<float>(rank + 1));
    ASSERT_TRUE(group.all_reduce(buffer(values, DType::F32), ReduceOp::Mean).wait().ok());
    EXPECT_EQ(values, std::vector<float>(n, sum / static_cast<float>(ranks)));

    std::vector<std::int64_t> part(n, static_cast<std::int64_t>(rank)), whole(n * ranks, -1);
    ASSERT_TRUE(group.all_gather(buffer(part, DType::I64), buffer(whole, DType::I64)).wait().ok());
    for (std::size_t i = 0; i < whole.size(); ++i) ASSERT_EQ(whole[i], static_cast<std::int64_t>(i / n));
    ASSERT_TRUE(group.reduce_scatter(buffer(whole, DType::I64), buffer(part, DType::I64), ReduceOp::Sum).wait().ok());
    EXPECT_EQ(part, std::vector<std::int64_t>(n, static_cast<std::int64_t>(rank * ranks)));

    std::vector<double> news(n, static_cast<double>(rank));
    ASSERT_TRUE(group.broadcast(buffer(news, DType::F64), group.size() - 1).wait().ok());
    EXPECT_EQ(news, std::vector<double>(n, static_cast<double>(ranks - 1)));
    ASSERT_TRUE(group.barrier().wait().ok());
  });
}

INSTANTIATE_TEST_SUITE_P(RanksAndSizes, NcclLogic, testing::Combine(testing::Values(1, 2, 3, 4), testing::Values(0, 1, 7, 10'001)));

TEST(NcclLogic, KeepsManyCollectivesInOrder) {
  on_ranks(2, milliseconds(20'000), [](Communicator& group) {
    std::vector<std::vector<float>> buffers(50, std::vector<float>(33));
    std::vector<Work> works;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      buffers[i].assign(33, static_cast<float>(i) + static_cast<float>(group.rank()));
      works.push_back(group.all_reduce(buffer(buffers[i], DType::F32), ReduceOp::Sum));
    }
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      ASSERT_TRUE(works[i].wait().ok());
      EXPECT_EQ(buffers[i].front(), 2 * static_cast<float>(i) + 1);
    }
  });
}

TEST(NcclLogic, EndsAtTheDeadlineWhenARankDoesNotCome) {
  on_ranks(2, milliseconds(100), [](Communicator& group) {
    if (group.rank() == 1) return;
    std::vector<float> values(4);
    const auto outcome = group.all_reduce(buffer(values, DType::F32), ReduceOp::Sum).wait();
    EXPECT_EQ(outcome.code(), Errc::DeadlinePassed);
    EXPECT_NE(outcome.text().find("all_reduce #1"), std::string::npos) << outcome.text();
    EXPECT_EQ(group.barrier().wait().text(), outcome.text()) << "a broken group keeps its first failure";
  });
}

TEST(NcclLogic, EndsAtTheDeadlineWhenARankNeverTakesItsSeat) {
  const auto join_alone = [] {
    ncclUniqueId id;
    (void)host_nccl::nccl().GetUniqueId(&id);
    (void)make_nccl_communicator(host_nccl::nccl(), host_nccl::gpu(), {.id = id, .rank = 0, .size = 2, .device = 0, .timeout = milliseconds(50)});
  };
  try {
    join_alone();
    FAIL() << "a group of one of two was made";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::DeadlinePassed);
  }
  EXPECT_EQ(host_nccl::num_live(), 0);
}

TEST(NcclLogic, AbortFreesAWaiterWithin100Milliseconds) {
  on_ranks(2, milliseconds(20'000), [](Communicator& group) {
    if (group.rank() == 1) return;
    std::vector<float> values(4);
    auto work = group.all_reduce(buffer(values, DType::F32), ReduceOp::Sum);
    std::chrono::steady_clock::time_point aborted;
    std::thread other([&] {
      std::this_thread::sleep_for(milliseconds(30));
      aborted = std::chrono::steady_clock::now();
      group.abort("rank 1 failed");
    });
    const auto outcome = work.wait();
    const auto freed = std::chrono::steady_clock::now();
    other.join();
    EXPECT_EQ(outcome.code(), Errc::Aborted);
    EXPECT_NE(outcome.text().find("rank 1 failed"), std::string::npos);
    EXPECT_LT(freed - aborted, milliseconds(100));
  });
}

TEST(NcclLogic, AFailureOfAnyCallIsAnOutcomeAndLeavesNothingBehind) {
  for (int n = 0; n < 6; ++n) {
    on_ranks(1, milliseconds(5'000), [n](Communicator& group) {
      host_nccl::fail_at_call(n);
      std::vector<float> values(4);
      int failed = 0;
      for (int call = 0; call < 6; ++call) failed += !group.all_reduce(buffer(values, DType::F32), ReduceOp::Sum).wait().ok();
      EXPECT_EQ(failed, 6 - n) << "the group is broken from the first failure on";
      host_nccl::fail_at_call(-1);
    });
  }
}

TEST(NcclLogic, RefusesWhatNcclHasNoTypeFor) {
  on_ranks(1, milliseconds(5'000), [](Communicator& group) {
    std::vector<std::int16_t> values(4);
    EXPECT_THROW((void)group.all_reduce(buffer(values, DType::I16), ReduceOp::Sum), Failure);
    EXPECT_THROW((void)group.broadcast({values.data(), 8, DType::I32}, 1), Failure);
  });
}

}  // namespace
}  // namespace troupe

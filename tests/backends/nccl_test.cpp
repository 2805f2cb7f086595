// The NCCL communicator's logic over a host-memory stand-in for NCCL and CUDA (tests/backends/host_nccl.hpp).
#include "comm_cases.hpp"
#include "cuda_device.hpp"
#include "device_cases.hpp"
#include "host_nccl.hpp"
#include "nccl_communicator.hpp"

#include <troupe/checked_communicator.hpp>
#include <troupe/local_groups.hpp>
#include <troupe/rank_gpu.hpp>

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

/// The contract of every Communicator, where it holds: NCCL does not widen, and does not tell who called what.
class NcclContract : public testing::TestWithParam<int> {
 protected:
  std::string run(const std::string& body, const std::string& argument = "") {
    ncclUniqueId id;
    (void)host_nccl::nccl().GetUniqueId(&id);
    auto text = testing_ranks::failures(
        testing_ranks::Ranks{"nccl", GetParam(), body, argument, milliseconds(20'000), {id.internal, sizeof id.internal}}.join());
    if (host_nccl::num_live() != 0) text += "streams, events or communicators left";
    return text;
  }
};

TEST_P(NcclContract, CombinesEverySizeTypeAndReduction) {
  for (const auto* n : {"0", "1", "1027", "20001"}) EXPECT_EQ(run("collectives", n), "") << n;
}
TEST_P(NcclContract, KeepsManyCollectivesUnderWay) { EXPECT_EQ(run("overlap"), ""); }
TEST_P(NcclContract, ScattersAndGathersInPlace) { EXPECT_EQ(run("in_place"), ""); }
TEST_P(NcclContract, AddsInRankOrderOnEveryRankAsTheStandInDoes) { EXPECT_EQ(run("bitwise"), ""); }
TEST_P(NcclContract, ReducesUnevenPartsToTheirOwners) { EXPECT_EQ(run("owners"), ""); }
TEST_P(NcclContract, SplitsIntoGroupsOfAPartOfTheRanks) { EXPECT_EQ(run("split"), ""); }
TEST_P(NcclContract, CountsWhatItSends) { EXPECT_EQ(run("traffic"), ""); }
TEST_P(NcclContract, RecordsItsCollectives) { EXPECT_EQ(run("record", "30"), ""); }
TEST_P(NcclContract, RefusesWrongArguments) { EXPECT_EQ(run("bad_arguments"), ""); }

INSTANTIATE_TEST_SUITE_P(Ranks, NcclContract, testing::Values(1, 2, 3, 4));

INSTANTIATE_TEST_SUITE_P(CudaOnHost, DeviceContract, testing::Values(DeviceCase{"cuda", [] {
  host_nccl::delay_streams(std::chrono::microseconds{100});
  return make_cuda_runtime(host_nccl::gpu(), 0);
}}), [](const auto& i) { return i.param.name; });

TEST(NcclLogic, ACollectiveBeginsAfterWhatTheComputeStreamHasAndItsEventOrdersWhatFollows) {
  const auto longest = std::chrono::microseconds{300};
  host_nccl::delay_streams(longest);
  ncclUniqueId id;
  (void)host_nccl::nccl().GetUniqueId(&id);
  const auto rank = [&](int r) {
    cudaStream_t native = nullptr;
    (void)host_nccl::gpu().StreamCreateWithFlags(&native, 0);
    {
      const auto group = make_nccl_communicator(host_nccl::nccl(), host_nccl::gpu(), {.id = id, .rank = r, .size = 2, .device = 0, .compute_stream = native});
      const auto runtime = make_cuda_runtime(host_nccl::gpu(), 0, native);
      auto& compute = runtime->compute_stream();
      for (int round = 1; round <= 20; ++round) {
        std::vector<float> mine(64, static_cast<float>(round * (r + 1))), values(64, -1), result(64, -1);
        compute.copy_async(values.data(), mine.data(), 256);
        auto work = group->all_reduce(buffer(values, DType::F32), ReduceOp::Sum);
        ASSERT_NE(work.event(), nullptr);
        compute.wait(*work.event());
        compute.copy_async(result.data(), values.data(), 256);
        compute.synchronize();
        ASSERT_EQ(result, std::vector<float>(64, static_cast<float>(3 * round)));
        EXPECT_TRUE(work.wait().ok());
      }
    }
    (void)host_nccl::gpu().StreamDestroy(native);
  };
  std::thread other{rank, 1};
  rank(0);
  other.join();
  host_nccl::delay_streams({});
  EXPECT_EQ(host_nccl::num_live(), 0);
}

/// The plug-in over the stand-in.
class HostPlugin final : public NcclPlugin {
 public:
  int device_count() const override { return 2; }
  int version() const override { return 0; }
  std::string unique_id() const override {
    ncclUniqueId id;
    (void)host_nccl::nccl().GetUniqueId(&id);
    return {id.internal, sizeof id.internal};
  }
  std::unique_ptr<Communicator> communicator(const std::string& id, int rank, int size, int device, milliseconds timeout) override {
    NcclSeat seat{.id = {}, .rank = rank, .size = size, .device = device, .timeout = timeout};
    id.copy(seat.id.internal, sizeof seat.id.internal);
    return make_nccl_communicator(host_nccl::nccl(), host_nccl::gpu(), seat);
  }
  std::unique_ptr<DeviceRuntime> runtime(int device) override { return make_cuda_runtime(host_nccl::gpu(), device); }
};

TEST(RankGpu, EveryRankOpensItsOwnAndMeetsTheOthers) {
  auto seats = make_thread_group(2, milliseconds(20'000));
  std::vector<float> sums(2);
  const auto rank = [&](std::size_t r) {
    HostPlugin plugin;
    const auto gpu = open_rank_gpu(plugin, *seats[r], static_cast<int>(r), milliseconds(20'000));
    EXPECT_EQ(gpu.runtime->device().index, static_cast<int>(r));
    sums[r] = static_cast<float>(r + 1);
    EXPECT_TRUE(gpu.communicator->all_reduce({&sums[r], 4, DType::F32}, ReduceOp::Sum).wait().ok());
  };
  std::thread other{rank, 1};
  rank(0);
  other.join();
  EXPECT_EQ(sums, (std::vector<float>{3, 3}));
}

TEST(RankGpu, AHostWithTooFewIsRefused) {
  const HostPlugin plugin;
  require_gpus(plugin, 2);
  try {
    require_gpus(plugin, 3);
    FAIL() << "three ranks on two GPUs";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::Unsupported);
    EXPECT_NE(std::string(failure.what()).find("use_gpu: this host has 2 usable GPUs for 3 ranks"), std::string::npos) << failure.what();
  }
}

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
    std::vector<float> wide(4);
    EXPECT_THROW((void)group.reduce_scatter(Buffer{values.data(), 8, DType::BF16}, buffer(wide, DType::F32), ReduceOp::Sum), Failure);
  });
}

TEST(NcclLogic, InDebugModeAMismatchNamesEachRanksCall) {
  ncclUniqueId id;
  (void)host_nccl::nccl().GetUniqueId(&id);
  const auto results = testing_ranks::Ranks{"nccl_checked", 4, "mismatch", "", milliseconds(20'000), {id.internal, sizeof id.internal}}.join();
  EXPECT_EQ(testing_ranks::failures(results), "");
  for (const auto& result : results)
    EXPECT_EQ(result.text, "ranks disagree: rank 1 is at broadcast #2 of `encoder.6` (from rank 0, F32 x 4); ranks 0, 2, 3 are at all_reduce #2 of "
                           "`encoder.5` (sum, F32 x 8)\n");
}

TEST(NcclLogic, AnAbortOfAGroupEndsTheOnesSplitFromIt) {
  on_ranks(2, milliseconds(20'000), [](Communicator& group) {
    const auto whole = group.split(0);
    if (group.rank() == 1) return;
    auto work = whole->barrier();
    group.abort("enough");
    EXPECT_EQ(work.wait().code(), Errc::Aborted);
  });
}

TEST(NcclLogic, ASplitEndsAtTheDeadlineWhenARankDoesNotCome) {
  on_ranks(2, milliseconds(50), [](Communicator& group) {
    if (group.rank() == 1) return;
    try {
      (void)group.split(0);
      FAIL() << "a group of a part of its ranks";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::DeadlinePassed) << failure.what();
    }
  });
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  using namespace troupe;
  testing_ranks::register_contract(false);
  testing_ranks::registry().on_threads = {"nccl", "nccl_checked"};
  const auto join = [](const std::string& place, int rank, int size, milliseconds timeout) {
    NcclSeat seat{.id = {}, .rank = rank, .size = size, .device = 0, .timeout = timeout};
    place.copy(seat.id.internal, sizeof seat.id.internal);
    return make_nccl_communicator(host_nccl::nccl(), host_nccl::gpu(), seat);
  };
  testing_ranks::registry().joins["nccl"] = join;
  testing_ranks::registry().joins["nccl_checked"] = [join](const auto&... arguments) { return checked_communicator(join(arguments...)); };
  return testing_ranks::main_of_ranks(argc, argv);
}

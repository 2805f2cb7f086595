// Gloo through LibTorch as a communicator, and a communicator as a c10d process group.
#include <troupe/c10d_adapters.hpp>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <filesystem>
#include <functional>
#include <thread>

#include <sys/stat.h>

namespace troupe {
namespace {

using std::chrono::milliseconds;
namespace fs = std::filesystem;

/// A private directory that goes away.
class MeetingPlace {
 public:
  MeetingPlace() {
    char name[] = "/tmp/troupe-gloo-XXXXXX";
    path_ = ::mkdtemp(name);
  }
  ~MeetingPlace() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void on_gloo_ranks(int size, milliseconds timeout, const std::function<void(Communicator&)>& body) {
  MeetingPlace place;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.emplace_back([&, rank] {
      const auto seat = make_gloo_communicator(place.path(), rank, size, timeout);
      body(*seat);
    });
  }
  for (auto& rank : ranks) rank.join();
}

template <class T>
Buffer buffer(std::vector<T>& values, DType dtype) {
  return {values.data(), values.size() * sizeof(T), dtype};
}

TEST(Gloo, ReducesGathersScattersAndBroadcasts) {
  for (const std::size_t n : {0UL, 1UL, 7UL, 50'001UL}) {
    on_gloo_ranks(3, milliseconds(20'000), [n](Communicator& group) {
      const auto rank = static_cast<float>(group.rank());
      std::vector<float> values(n, rank + 1);
      ASSERT_TRUE(group.all_reduce(buffer(values, DType::F32), ReduceOp::Mean).wait().ok());
      EXPECT_EQ(values, std::vector<float>(n, 2));
      std::vector<float> part(n, rank), whole(3 * n, -1);
      ASSERT_TRUE(group.all_gather(buffer(part, DType::F32), buffer(whole, DType::F32)).wait().ok());
      for (std::size_t i = 0; i < whole.size(); ++i) ASSERT_EQ(whole[i], static_cast<float>(i / n));
      ASSERT_TRUE(group.reduce_scatter(buffer(whole, DType::F32), buffer(part, DType::F32), ReduceOp::Sum).wait().ok());
      EXPECT_EQ(part, std::vector<float>(n, 3 * rank));
      std::vector<std::int64_t> news(n, group.rank());
      ASSERT_TRUE(group.broadcast(buffer(news, DType::I64), 2).wait().ok());
      EXPECT_EQ(news, std::vector<std::int64_t>(n, 2));
      ASSERT_TRUE(group.barrier().wait().ok());
    });
  }
}

TEST(Gloo, SumsShortFloatsInFp32) {
  on_gloo_ranks(3, milliseconds(20'000), [](Communicator& group) {
    // 256 + 1 + 1 is 258; rounded to bf16 after each sum it would stay 256.
    auto values = at::full({5}, group.rank() == 0 ? 256.0 : 1.0, at::kBFloat16);
    ASSERT_TRUE(group.all_reduce({values.data_ptr(), values.nbytes(), DType::BF16}, ReduceOp::Sum).wait().ok());
    EXPECT_TRUE(at::equal(values, at::full({5}, 258.0, at::kBFloat16)));
  });
}

TEST(Gloo, NamesTheRankThatDidNotCome) {
  on_gloo_ranks(3, milliseconds(300), [](Communicator& group) {
    if (group.rank() == 1) {
      std::this_thread::sleep_for(milliseconds(1'000));
      return;
    }
    std::vector<float> values(8);
    const auto outcome = group.all_reduce(buffer(values, DType::F32), ReduceOp::Sum).wait();
    // One of the two speaks first; its cancel ends the other's wait.
    ASSERT_FALSE(outcome.ok());
    if (outcome.code() == Errc::DeadlinePassed) {
      EXPECT_NE(outcome.text().find("all_reduce #1: rank 1 did not come"), std::string::npos) << outcome.text();
    }
    EXPECT_EQ(group.barrier().wait().text(), outcome.text());
  });
}

TEST(Gloo, AbortFreesEveryRankWithin100Milliseconds) {
  on_gloo_ranks(2, milliseconds(20'000), [](Communicator& group) {
    static std::atomic<std::chrono::steady_clock::time_point> aborted;
    if (group.rank() == 1) {
      std::this_thread::sleep_for(milliseconds(100));
      aborted = std::chrono::steady_clock::now();
      group.abort("rank 1 failed: out of memory");
      EXPECT_EQ(group.barrier().wait().code(), Errc::Aborted);
      return;
    }
    std::vector<float> values(8);
    EXPECT_FALSE(group.all_reduce(buffer(values, DType::F32), ReduceOp::Sum).wait().ok());
    EXPECT_LT(std::chrono::steady_clock::now() - aborted.load(), milliseconds(100));
  });
}

TEST(Gloo, RefusesAMeetingPlaceThatOthersCanEnter) {
  MeetingPlace place;
  ::chmod(place.path().c_str(), 0755);
  EXPECT_THROW((void)make_gloo_communicator(place.path(), 0, 1, milliseconds(1'000)), Failure);
  EXPECT_THROW((void)make_gloo_communicator(place.path() / "nowhere", 0, 1, milliseconds(1'000)), Failure);
}

TEST(Gloo, SaysWhenNotEveryRankTookItsSeat) {
  MeetingPlace place;
  try {
    (void)make_gloo_communicator(place.path(), 0, 2, milliseconds(300));
    FAIL() << "a group of one of two was made";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::DeadlinePassed) << failure.what();
  }
}

TEST(ToC10d, GivesAProcessGroupItsCollectives) {
  on_gloo_ranks(2, milliseconds(20'000), [](Communicator& group) {
    const auto pg = to_c10d(group);
    std::vector<at::Tensor> tensors{at::full({4}, group.rank() + 1.0)};
    pg->allreduce(tensors)->wait();
    EXPECT_TRUE(at::equal(tensors[0], at::full({4}, 3.0)));
    auto part = at::full({2}, group.rank(), at::kDouble);
    auto whole = at::empty({4}, at::kDouble);
    pg->_allgather_base(whole, part)->wait();
    EXPECT_TRUE(at::equal(whole, at::arange(4, at::kDouble).div(2, "floor")));
    std::vector<at::Tensor> strided{at::arange(6, at::kFloat).view({2, 3}).t()};
    pg->allreduce(strided)->wait();
    EXPECT_TRUE(at::equal(strided[0], at::arange(6, at::kFloat).view({2, 3}).t() * 2)) << "not contiguous";
  });
}

TEST(ToC10d, RunsTorchsOwnReducer) {
  on_gloo_ranks(2, milliseconds(20'000), [](Communicator& group) {
    const auto pg = to_c10d(group);
    std::vector<at::Tensor> parameters{at::ones({3}).requires_grad_(), at::ones({3}).requires_grad_()};
    c10d::verify_params_across_processes(pg, parameters, std::nullopt);
    c10d::Reducer reducer(parameters, {{1}, {0}}, pg, {false, false}, 1 << 20, false, true, {{0, "a"}, {1, "b"}}, 1 << 20, false, false, {});
    for (int step = 0; step < 3; ++step) {
      reducer.prepare_for_forward();
      (void)reducer.rebuild_buckets();
      const auto loss = (parameters[0] * parameters[1] * (group.rank() + 1.0)).sum();
      reducer.prepare_for_backward({});
      loss.backward();
      EXPECT_TRUE(at::equal(parameters[0].grad(), at::full({3}, 1.5))) << "the mean of 1 and 2";
      for (auto& parameter : parameters) parameter.mutable_grad().zero_();
    }
  });
}

}  // namespace
}  // namespace troupe

#include "counting_communicator.hpp"
#include "fake_context.hpp"
#include "small_net.hpp"

#include "../../backends/gradient_memory.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/local_groups.hpp>

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <thread>

namespace troupe {
namespace {

using detail::GradientMemory;
constexpr std::int64_t kElements = 300'000;
constexpr std::size_t kBytes = kElements * 4;

const bool counting_installed = (CountTensors::install(), true);  // before anything else, as in a main

struct GradientMemoryTest : testing::Test {
  std::unique_ptr<Communicator> self = self_communicator();
  test::CountingCommunicator communicator{*self};
};

TEST_F(GradientMemoryTest, HoldsTensorsOfItsSizesWhileItHasBlocks) {
  const GradientMemory memory{communicator, {kBytes}};
  ASSERT_EQ(communicator.allocated.size(), 1u);
  auto first = at::empty({kElements});
  EXPECT_EQ(first.data_ptr(), communicator.allocated[0]);
  EXPECT_NE(at::empty({kElements}).data_ptr(), communicator.allocated[0]);
  EXPECT_NE(at::empty({kElements - 1}).data_ptr(), communicator.allocated[0]);
  first.reset();
  EXPECT_EQ(at::empty({1000, 300}).data_ptr(), communicator.allocated[0]);
  EXPECT_EQ(communicator.allocated.size(), 1u);
}

TEST_F(GradientMemoryTest, ZerosAreZeroInABlockThatWasUsed) {
  const GradientMemory memory{communicator, {kBytes}};
  { (void)at::ones({kElements}); }
  const auto zeros = at::zeros({kElements});
  EXPECT_EQ(zeros.data_ptr(), communicator.allocated[0]);
  EXPECT_EQ(zeros.sum().item<float>(), 0);
}

TEST_F(GradientMemoryTest, TensorsOutliveIt) {
  at::Tensor tensor;
  {
    const GradientMemory memory{communicator, {kBytes}};
    tensor = at::ones({kElements});
  }
  self.reset();
  EXPECT_EQ(tensor.sum().item<float>(), kElements);
  EXPECT_NE(at::empty({kElements}).data_ptr(), tensor.data_ptr());
}

TEST_F(GradientMemoryTest, LeavesCountedTensorsCounted) {
  const GradientMemory memory{communicator, {kBytes}};
  const MemoryAccount account;
  const CountTensors counting{account};
  const auto held = at::empty({kElements}), counted = at::empty({kElements});
  EXPECT_EQ(account.usage(MemoryCategory::Activations).now, static_cast<std::int64_t>(kBytes));
}

/// Gradients of ranks that reach each other's memory only where it is shared, beside those of threads, which reach all.
TEST(GradientMemoryOfRanks, ChangesNoGradient) {
  const auto train = [](Communicator& communicator, std::vector<at::Tensor>& gradients) {
    test::FakeContext context{communicator};
    Accelerator accelerator{context};
    set_seed(3);
    auto net = std::make_shared<test::SmallNetImpl>(60'000);  // a parameter above 1 MiB
    accelerator.prepare(net);
    set_seed(static_cast<std::uint64_t>(communicator.rank()));
    for (int step = 0; step < 3; ++step) {
      for (auto& p : net->parameters()) p.mutable_grad().reset();
      accelerator.backward(at::mse_loss(net->forward(at::randn({4, 6}, rank_generator())), at::ones({4, 3})));
    }
    for (auto& p : net->parameters()) gradients.push_back(p.grad().clone());
  };
  const auto on_two_threads = [&](auto seat_of) {
    std::vector<at::Tensor> gradients[2];
    std::thread other{[&] { train(*seat_of(1), gradients[1]); }};
    train(*seat_of(0), gradients[0]);
    other.join();
    return gradients[0];
  };
  const auto timeout = std::chrono::seconds{20};
  const auto group = SharedGroup::create(2, timeout);
  const auto shared = on_two_threads([&](int rank) { return SharedGroup::join(group->fd(), rank); });
  auto seats = make_thread_group(2, timeout);
  const auto threads = on_two_threads([&](int rank) { return std::move(seats[static_cast<std::size_t>(rank)]); });
  ASSERT_EQ(shared.size(), threads.size());
  for (std::size_t i = 0; i < shared.size(); ++i) EXPECT_TRUE(at::equal(shared[i], threads[i])) << i;
}

}  // namespace
}  // namespace troupe

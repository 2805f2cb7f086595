#include "checkpoint_units.hpp"

#include <troupe/errors.hpp>
#include <troupe/memory_account.hpp>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <barrier>
#include <nlohmann/json.hpp>
#include <thread>

namespace troupe {
namespace {

using enum MemoryCategory;
using Source = MemoryAccount::Source;
constexpr std::int64_t mib = 1 << 20;

at::Tensor tensor(std::int64_t bytes) { return at::empty({bytes / 4}); }

void expect(const MemoryUsage& usage, std::int64_t now, std::int64_t peak) {
  EXPECT_EQ(usage.now, now);
  EXPECT_EQ(usage.peak, peak);
}

TEST(MemoryAccount, KnowsWhatIsThereAndWhatWasThereAtMost) {
  MemoryAccount account;
  auto parameters = account.charge(Parameters, 100);
  {
    auto gathered = account.charge(Gathered, 50);
    gathered.resize(70);
    gathered.resize(10);
    expect(account.usage(Gathered), 10, 70);
    expect(account.total(), 110, 170);
  }
  auto gradients = account.charge(Gradients, 40);
  parameters = account.charge(Parameters, 30);  // the new one is there before the old one goes
  expect(account.usage(Parameters), 30, 130);
  auto moved = std::move(parameters);
  expect(account.usage(Parameters), 30, 130);
  expect(account.usage(Gathered), 0, 70);
  expect(account.total(), 70, 170);
  account.reset_peaks();
  expect(account.usage(Gathered), 0, 0);
  expect(account.total(), 70, 70);
  const auto host = account.charge(Offloaded, 1000);
  expect(account.usage(Offloaded), 1000, 1000);
  expect(account.total(), 70, 70);
}

TEST(MemoryAccount, RefusesWhatCannotBeCharged) {
  const MemoryAccount account;
  EXPECT_THROW((void)account.charge(Activations, 1), Failure);
  EXPECT_THROW((void)account.charge(Parameters, -1), Failure);
  EXPECT_EQ(account.total().peak, 0);
}

TEST(MemoryAccount, PrintsATableJsonAndAComparison) {
  const MemoryAccount account;
  const auto parameters = account.charge(Parameters, 3 * mib);
  (void)account.charge(Gathered, mib / 2);
  const auto json = nlohmann::json::parse(account.json());
  EXPECT_EQ(json["parameters"]["now"], 3 * mib);
  EXPECT_EQ(json["gathered"], nlohmann::json({{"now", 0}, {"peak", mib / 2}}));
  EXPECT_EQ(json["total"]["peak"], 3 * mib + mib / 2);
  EXPECT_EQ(json["counts_tensors"], false);
  EXPECT_EQ(account.table(),
            "memory, MiB              now         peak\n"
            "parameters              3.00         3.00\n"
            "gathered                0.00         0.50\n"
            "total                   3.00         3.50\n");
  MemoryBytes estimate;
  estimate[Parameters] = 4 * mib;
  estimate[Offloaded] = 8 * mib;
  EXPECT_EQ(compare_memory(estimate, account),
            "memory, MiB         estimate         peak    ratio\n"
            "parameters              4.00         3.00    0.750\n"
            "gathered                0.00         0.50        -\n"
            "offloaded               8.00         0.00    0.000\n"
            "total                   4.00         3.50    0.875\n");
}

struct CountedTensors : testing::Test {
  static void SetUpTestSuite() {
    EXPECT_THROW(CountTensors{MemoryAccount{}}, Failure);
    CountTensors::install();
    CountTensors::install();
    at::set_num_threads(1);  // the others would not be counted
  }
  MemoryAccount account;
};

TEST_F(CountedTensors, CountAsActivationsUntilTheyAreFreed) {
  at::Tensor kept;
  const auto before = tensor(mib);
  {
    const CountTensors counting{account};
    kept = tensor(mib);
    (void)tensor(2 * mib);
    {
      MemoryAccount inner;
      const CountTensors in_turn{inner};
      const auto other = tensor(5 * mib);
      expect(inner.total(), 5 * mib, 5 * mib);
    }
    const auto more = tensor(mib);
    expect(account.usage(Activations), 2 * mib, 3 * mib);
  }
  const auto after = tensor(8 * mib);
  expect(account.total(), mib, 3 * mib);
  kept = at::Tensor{};
  expect(account.total(), 0, 3 * mib);
  EXPECT_TRUE(account.counts_tensors());
}

TEST_F(CountedTensors, MoveToTheCategoryTheyAreChargedTo) {
  const CountTensors counting{account};
  {
    auto charge = account.charge(Gathered, mib);
    const auto gathered = tensor(mib);  // charged before, released after: never seen as an activation
    expect(account.usage(Activations), 0, 0);
  }
  const auto parameter = tensor(mib);
  const auto activation = tensor(2 * mib);
  const auto charge = account.charge(Parameters, parameter);
  expect(account.usage(Parameters), mib, mib);
  expect(account.usage(Activations), 2 * mib, 3 * mib);
  expect(account.usage(Gathered), 0, mib);
  expect(account.total(), 3 * mib, 3 * mib);
  const auto arena = account.charge(Communication, 4 * mib, Source::Elsewhere);
  const auto on_host = account.charge(Offloaded, activation);
  const auto pinned = account.charge(Offloaded, 9 * mib, Source::Elsewhere);
  expect(account.usage(Activations), 0, 3 * mib);
  expect(account.usage(Offloaded), 11 * mib, 11 * mib);
  EXPECT_EQ(account.total().now, 5 * mib);
}

TEST_F(CountedTensors, OlderThanTheCountAreStillChargedRight) {
  const auto old = tensor(mib);
  const CountTensors counting{account};
  const auto charge = account.charge(Parameters, old);
  expect(account.usage(Parameters), mib, mib);
  expect(account.usage(Activations), 0, 0);
  expect(account.total(), mib, mib);
}

TEST_F(CountedTensors, OfTwoRanksDoNotMix) {
  MemoryAccount accounts[2];
  std::barrier both{2};
  at::Tensor left_behind[2];
  const auto rank = [&](int r) {
    const CountTensors counting{accounts[r]};
    for (int i = 0; i < 200; ++i) (void)tensor((r + 1) * mib / 4);
    left_behind[r] = tensor((r + 1) * mib);
    both.arrive_and_wait();
    left_behind[1 - r] = at::Tensor{};
    both.arrive_and_wait();
    (void)tensor((r + 1) * mib / 4);
  };
  std::thread other{rank, 1};
  rank(0);
  other.join();
  expect(accounts[0].total(), 0, mib);
  expect(accounts[1].total(), 0, 2 * mib);
}

TEST_F(CountedTensors, FollowAStorageWhoseBytesComeAndGo) {
  const CountTensors counting{account};
  const auto buffer = tensor(mib);
  auto* const storage = buffer.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(storage->allocator()->allocate(0));
  expect(account.total(), 0, mib);
  storage->set_data_ptr_noswap(storage->allocator()->allocate(2 * mib));
  expect(account.total(), 2 * mib, 2 * mib);
}

TEST_F(CountedTensors, AreAlignedAndMayOutliveTheAccount) {
  at::Tensor survivor;
  {
    const MemoryAccount gone;
    const CountTensors counting{gone};
    survivor = at::empty({3});
  }
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(survivor.data_ptr()) % 64, 0U);
  survivor = at::Tensor{};
  const CountTensors counting{account};
  void* const raw = c10::GetCPUAllocator()->raw_allocate(100);
  expect(account.total(), 100, 100);
  c10::GetCPUAllocator()->raw_deallocate(raw);
  EXPECT_EQ(account.total().now, 0);
  EXPECT_EQ(at::empty({0}).nbytes(), 0U);
}

struct StackOf8 {
  test::Stack stack{8, 64, 512};
  at::Tensor x = at::randn({128, 64}, rank_generator());
  void step() {
    stack->zero_grad(/*set_to_none=*/false);
    stack(x).square().sum().backward();
  }
};

TEST_F(CountedTensors, AreFewerWithActivationCheckpointing) {
  const CountTensors counting{account};
  StackOf8 model;
  const auto peak = [&](bool on, bool offload) {
    set_activation_checkpointing(*model.stack, on, offload);
    model.step();
    const auto rest = account.usage(Activations).now;
    account.reset_peaks();
    model.step();
    EXPECT_EQ(account.usage(Activations).now, rest);
    return account.usage(Activations).peak - rest;
  };
  const auto plain = peak(false, false);
  const auto checkpointed = peak(true, false);
  const auto offloaded = peak(true, true);
  RecordProperty("plain", plain);
  RecordProperty("checkpointed", checkpointed);
  RecordProperty("offloaded", offloaded);
  EXPECT_LT(checkpointed, 0.5 * plain);
  EXPECT_LT(offloaded, 0.5 * plain);
}

TEST_F(CountedTensors, AreAllAccountedForAtRestAndStayAsMany) {
  const CountTensors counting{account};
  StackOf8 model;
  set_activation_checkpointing(*model.stack, true);
  model.step();
  std::vector<MemoryAccount::Charge> charges;
  charges.push_back(account.charge(Buffers, model.x));
  std::int64_t bytes = 0;
  for (const auto& parameter : model.stack->parameters()) {
    charges.push_back(account.charge(Parameters, parameter));
    charges.push_back(account.charge(Gradients, parameter.grad()));
    bytes += static_cast<std::int64_t>(parameter.nbytes());
  }
  EXPECT_EQ(account.usage(Parameters).now, bytes);
  EXPECT_EQ(account.usage(Gradients).now, bytes);
  const auto rest = account.usage(Activations).now;
  EXPECT_LT(rest, 8192);  // the state of a random generator
  for (int i = 0; i < 20; ++i) model.step();
  EXPECT_EQ(account.usage(Activations).now, rest);
}

}  // namespace
}  // namespace troupe

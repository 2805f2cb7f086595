// Batches on their way to a device, which here does what it is given late (AsyncHost).
#include <troupe/async_host.hpp>
#include <troupe/device_batches.hpp>

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;

/// Sample i: i as doubles, whether it is odd, and an empty tensor.
struct Rows final : MapDataset {
  std::size_t size() const override { return 24; }
  TensorDict get(std::size_t index) const override {
    return {{"value", at::full({5}, static_cast<double>(index), at::kDouble)}, {"flag", at::full({}, index % 2 == 1, at::kBool)}, {"none", at::empty({0}, at::kFloat)}};
  }
};

void expect_rows(DataLoader& loader) {
  std::int64_t row = 0;
  for (const auto& batch : loader) {
    for (std::int64_t r = 0; r < batch.batch_size(); ++r, ++row) {
      ASSERT_EQ(batch["value"][r][4].item<double>(), static_cast<double>(row));
      ASSERT_EQ(batch["flag"][r].item<bool>(), row % 2 == 1);
    }
    EXPECT_EQ(batch["value"].scalar_type(), at::kDouble);
    EXPECT_EQ(batch["none"].sizes(), (at::IntArrayRef{batch.batch_size(), 0}));
  }
  EXPECT_EQ(row, 24);
}

TEST(DeviceBatches, ArriveWholeOnAnAsynchronousDevice) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    const auto runtime = async_host_runtime({.max_delay = 2ms, .seed = seed});
    DataLoader loader{std::make_shared<Rows>(), {.batch_size = 3, .num_workers = static_cast<int>(seed % 3)}};
    loader.set_transfer(to_device(*runtime));
    for (int epoch = 0; epoch < 2; ++epoch) expect_rows(loader);
  }
}

TEST(DeviceBatches, StayAsTheyAreWhenTheLoopKeepsThem) {
  const auto runtime = async_host_runtime({.max_delay = 500us});
  DataLoader loader{std::make_shared<Rows>(), {.batch_size = 4}};
  loader.set_transfer(to_device(*runtime));
  std::vector<Batch> kept;
  for (const auto& batch : loader) kept.push_back(batch);
  for (std::size_t b = 0; b < kept.size(); ++b) EXPECT_EQ(kept[b]["value"][0][0].item<double>(), static_cast<double>(4 * b));
}

TEST(DeviceBatches, MayBeLeftOnTheirWay) {
  for (int leave = 0; leave < 4; ++leave) {
    const auto runtime = async_host_runtime({.max_delay = 5ms});
    DataLoader loader{std::make_shared<Rows>(), {.batch_size = 2}};
    loader.set_transfer(to_device(*runtime));
    auto it = loader.begin();
    for (int i = 0; i < leave; ++i) ++it;
  }
}

TEST(DeviceBatches, AreCopiedBesideTheLoop) {
  const auto runtime = async_host_runtime({.max_delay = 40ms, .seed = 3});
  DataLoader loader{std::make_shared<Rows>(), {.batch_size = 2}};
  loader.set_transfer(to_device(*runtime));
  for ([[maybe_unused]] const auto& batch : loader) std::this_thread::sleep_for(45ms);
  EXPECT_LT(loader.stats().wait_share(), 0.05);
}

}  // namespace
}  // namespace troupe

#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>
#include <troupe/errors.hpp>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

using namespace std::chrono_literals;

/// Later samples load faster, so that workers finish out of order; counts loads.
class Uneven : public Counting {
 public:
  using Counting::Counting;
  [[nodiscard]] TensorDict get(std::size_t index) const override {
    ++loads;
    std::this_thread::sleep_for(index % 3 == 0 ? 2ms : 0ms);
    return Counting::get(index);
  }
  mutable std::atomic<int> loads{0};
};

std::size_t num_threads() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator{"/proc/self/task"}, {}));
}

TEST(DataLoaderWorkers, KeepTheOrderWhateverTheirNumber) {
  for (const int workers : {1, 2, 3, 8, 40}) {
    for (const int ahead : {1, 4}) {
      const DataLoaderOptions options{.batch_size = 2, .shuffle = true, .seed = 3};
      auto threaded = options;
      threaded.num_workers = workers;
      threaded.prefetch_factor = ahead;
      DataLoader plain{counting(31), options}, loader{std::make_shared<Uneven>(31), threaded};
      EXPECT_EQ(epoch_of(loader), epoch_of(plain));
      EXPECT_EQ(epoch_of(loader), epoch_of(plain));
    }
  }
}

TEST(DataLoaderWorkers, StayWithinTheirPrefetchWindow) {
  const auto dataset = std::make_shared<Uneven>(100);
  DataLoader loader{dataset, {.batch_size = 1, .num_workers = 2, .prefetch_factor = 3}};
  auto it = loader.begin();
  ++it;
  std::this_thread::sleep_for(50ms);
  EXPECT_LE(dataset->loads, 2 + 2 * 3);
  EXPECT_GE(dataset->loads, 2);
}

TEST(DataLoaderWorkers, EndWithTheLoopThatIsLeftEarly) {
  const auto before = num_threads();
  DataLoader loader{std::make_shared<Uneven>(1000), {.batch_size = 4, .num_workers = 4}};
  for (int round = 0; round < 5; ++round) {
    for ([[maybe_unused]] const auto& batch : loader) {
      EXPECT_GT(num_threads(), before);
      break;
    }
    EXPECT_EQ(num_threads(), before);
  }
}

TEST(DataLoaderWorkers, EndWithTheEpoch) {
  const auto before = num_threads();
  DataLoader loader{counting(10), {.num_workers = 3}};
  (void)epoch_of(loader);
  EXPECT_EQ(num_threads(), before);
}

TEST(DataLoaderWorkers, DropWhatTheyLoadedWhenTheLoopIsLeft) {
  std::vector<std::weak_ptr<int>> alive;
  std::mutex mutex;
  const auto collate = [&](std::vector<TensorDict> samples) {
    const auto token = std::make_shared<int>(0);
    const std::lock_guard lock{mutex};
    alive.push_back(token);
    auto batch = default_collate(std::move(samples));
    auto* data = batch["index"].data_ptr();
    const auto options = batch["index"].options();
    return Batch{{"index", at::from_blob(
                               data, {1}, [token, batch](void*) {}, options)}};
  };
  {
    DataLoader loader{counting(50), {.num_workers = 4, .collate = collate}};
    for ([[maybe_unused]] const auto& batch : loader) break;
  }
  ASSERT_FALSE(alive.empty());
  for (const auto& token : alive) EXPECT_TRUE(token.expired());
}

TEST(DataLoaderWorkers, LoadSamplesAtTheSameTime) {
  class Crowded : public Counting {
   public:
    using Counting::Counting;
    [[nodiscard]] TensorDict get(std::size_t index) const override {
      const int now = ++inside;
      int seen = most;
      while (seen < now && !most.compare_exchange_weak(seen, now)) {
      }
      std::this_thread::sleep_for(5ms);
      --inside;
      return Counting::get(index);
    }
    mutable std::atomic<int> inside{0}, most{0};
  };
  const auto dataset = std::make_shared<Crowded>(32);
  DataLoader loader{dataset, {.batch_size = 4, .num_workers = 4}};
  (void)epoch_of(loader);
  EXPECT_GE(dataset->most, 2);
  EXPECT_LE(dataset->most, 4);
}

}  // namespace
}  // namespace troupe

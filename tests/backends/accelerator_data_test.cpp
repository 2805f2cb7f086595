// The Accelerator with data loaders: ends of epochs, uneven tails, resuming within an epoch.
#include "fake_context.hpp"

#include <troupe/accelerator.hpp>

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>
#include <unistd.h>

#include <filesystem>

namespace troupe {
namespace {

using test::run_ranks;

struct Numbers final : MapDataset {
  explicit Numbers(std::size_t n) : count(n) {}
  std::size_t size() const override { return count; }
  TensorDict get(std::size_t index) const override { return {{"x", at::full({}, static_cast<double>(index), at::kFloat)}}; }
  std::size_t count;
};

struct One : torch::nn::Module {
  One() : w(register_parameter("w", at::ones({1}))) {}
  at::Tensor w;
};

DataLoader loader(std::size_t samples, std::int64_t batch_size, bool shuffle = false) {
  return {std::make_shared<Numbers>(samples), {.batch_size = batch_size, .shuffle = shuffle}};
}

TEST(AcceleratorData, TheLastBatchEndsItsWindowAndDividesByTheWindowsOwnLength) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 3}};
    auto model = std::make_shared<One>();
    auto data = loader(5, 1);
    accelerator.prepare(model, data);
    std::vector<bool> sync;
    std::vector<double> grads;
    for (const auto& batch : data) {
      const auto window = accelerator.accumulate(model);
      accelerator.backward((model->w * batch["x"]).sum());
      sync.push_back(accelerator.sync_gradients());
      if (!sync.back()) continue;
      grads.push_back(model->w.grad().item<double>());
      model->w.mutable_grad().reset();
    }
    EXPECT_EQ(sync, (std::vector<bool>{false, false, true, false, true}));
    ASSERT_EQ(grads.size(), 2u);
    EXPECT_NEAR(grads[0], (0 + 1 + 2) / 3.0, 1e-6);
    EXPECT_NEAR(grads[1], (3 + 4) / 2.0, 1e-6);
  });
}

struct DataRanks : testing::TestWithParam<int> {};

TEST_P(DataRanks, GatherForMetricsGivesEverySampleOnce) {
  run_ranks(GetParam(), [](TrainContext& context) {
    Accelerator accelerator{context};
    auto data = loader(11, 2);
    accelerator.prepare(data);
    for (int epoch = 0; epoch < 2; ++epoch) {
      std::vector<float> seen;
      for (const auto& batch : data) {
        const auto all = accelerator.gather_for_metrics(batch["x"]);
        for (std::int64_t i = 0; i < all.numel(); ++i) seen.push_back(all[i].item<float>());
      }
      std::sort(seen.begin(), seen.end());
      std::vector<float> expected;
      for (int i = 0; i < 11; ++i) expected.push_back(static_cast<float>(i));
      EXPECT_EQ(seen, expected);
    }
  });
}

TEST_P(DataRanks, ResumesWithinAnEpochWithTheBatchesThatWereLeft) {
  const auto directory = std::filesystem::temp_directory_path() / ("troupe_resume_" + std::to_string(::getpid()));
  std::filesystem::remove_all(directory);
  run_ranks(GetParam(), [&](TrainContext& context) {
    set_seed(5);
    Accelerator accelerator{context};
    auto data = loader(24, 2, true);
    accelerator.prepare(data);
    std::vector<at::Tensor> left;
    int count = 0;
    for (const auto& batch : data) {
      if (count >= 2) left.push_back(batch["x"]);
      if (++count == 2) accelerator.save_state(directory);
    }
    set_seed(77);
    Accelerator later{context};
    auto again = loader(24, 2, true);
    later.prepare(again);
    later.load_state(directory);
    std::size_t i = 0;
    for (const auto& batch : again) {
      ASSERT_LT(i, left.size());
      EXPECT_TRUE(at::equal(batch["x"], left[i++]));
    }
    EXPECT_EQ(i, left.size());
  });
  std::filesystem::remove_all(directory);
}

/// 0, 1, 2, …, as a stream that says where it is.
struct NumberStream final : IterableDataset {
  explicit NumberStream(std::int64_t n) : count(n) {}
  struct Reader final : Pass {
    Reader(std::int64_t from, std::int64_t to) : at(from), end(to) {}
    std::optional<TensorDict> next() override {
      if (at >= end) return std::nullopt;
      return TensorDict{{"x", at::full({}, static_cast<double>(at++), at::kFloat)}};
    }
    std::string position() const override { return std::to_string(at); }
    std::int64_t at, end;
  };
  std::unique_ptr<Pass> begin(std::int64_t, const std::string& position) const override {
    return std::make_unique<Reader>(position.empty() ? 0 : std::stoll(position), count);
  }
  std::int64_t count;
};

// However a loader is dealt: what is gathered is every sample once and in order, and a loop that is resumed goes on where it was.
TEST_P(DataRanks, GatherAndResumeInEveryMode) {
  const auto directory = std::filesystem::temp_directory_path() / ("troupe_modes_" + std::to_string(::getpid()));
  for (int mode = 0; mode < 4; ++mode) {
    std::filesystem::remove_all(directory);
    run_ranks(GetParam(), [&](TrainContext& context) {
      const DataLoaderConfiguration configuration{.dispatch_batches = (mode & 1) != 0};
      const auto make = [&] {
        if (mode & 2) return DataLoader{std::make_shared<NumberStream>(13), {.batch_size = 2}};
        return DataLoader{std::make_shared<Numbers>(13), {.batch_size = 2}};
      };
      Accelerator accelerator{context, {.dataloader = configuration}};
      auto data = make();
      accelerator.prepare(data);
      std::vector<float> seen, left;
      int count = 0;
      for (const auto& batch : data) {
        const auto all = accelerator.gather_for_metrics(batch["x"]);
        for (std::int64_t i = 0; i < all.numel(); ++i) seen.push_back(all[i].item<float>());
        if (count >= 2) left.insert(left.end(), batch["x"].const_data_ptr<float>(), batch["x"].const_data_ptr<float>() + batch["x"].numel());
        if (++count == 2) accelerator.save_state(directory);
      }
      ASSERT_EQ(seen.size(), 13u) << "mode " << mode;
      for (std::size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], static_cast<float>(i));
      Accelerator later{context, {.dataloader = configuration}};
      auto again = make();
      later.prepare(again);
      later.load_state(directory);
      std::vector<float> got;
      for (const auto& batch : again) got.insert(got.end(), batch["x"].const_data_ptr<float>(), batch["x"].const_data_ptr<float>() + batch["x"].numel());
      EXPECT_EQ(got, left) << "mode " << mode;
    });
  }
  std::filesystem::remove_all(directory);
}

INSTANTIATE_TEST_SUITE_P(Worlds, DataRanks, testing::Values(1, 2, 3), testing::PrintToStringParamName());

}  // namespace
}  // namespace troupe

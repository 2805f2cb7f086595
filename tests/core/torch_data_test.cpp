#include <ATen/ops/full.h>
#include <gtest/gtest.h>
#include <torch/data/dataloader.h>
#include <torch/data/datasets/map.h>
#include <torch/data/samplers/sequential.h>
#include <torch/data/transforms/lambda.h>

#include <troupe/data/torch_data.hpp>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

/// Sample i has data i and target 10 i.
struct Theirs : torch::data::datasets::Dataset<Theirs> {
  torch::data::Example<> get(std::size_t index) override {
    const auto value = static_cast<std::int64_t>(index);
    return {at::full({2}, value, at::kLong), at::full({}, 10 * value, at::kLong)};
  }
  std::optional<std::size_t> size() const override { return 5; }
};

TEST(TorchData, ADataSetOfTorchsIsReadByTheLoader) {
  for (const int workers : {0, 2}) {
    DataLoader loader{from_torch(Theirs{}), {.batch_size = 2, .num_workers = workers}};
    std::int64_t rows = 0;
    for (const auto& batch : loader) {
      EXPECT_EQ(batch["data"].size(1), 2);
      for (std::int64_t r = 0; r < batch.batch_size(); ++r, ++rows) {
        EXPECT_EQ(batch["data"][r][1].item<std::int64_t>(), rows);
        EXPECT_EQ(batch["target"][r].item<std::int64_t>(), 10 * rows);
      }
    }
    EXPECT_EQ(rows, 5);
  }
}

TEST(TorchData, TransformsOfTorchsAndAConversionAreApplied) {
  auto doubled = Theirs{}.map(torch::data::transforms::Lambda<torch::data::Example<>>(
      [](torch::data::Example<> example) { return torch::data::Example<>{example.data * 2, example.target}; }));
  DataLoader loader{from_torch(std::move(doubled), [](torch::data::Example<> e) { return TensorDict{{"x", e.data}}; }), {.batch_size = 5}};
  EXPECT_EQ((*loader.begin())["x"][4][0].item<std::int64_t>(), 8);
}

TEST(TorchData, ADataSetOfOursIsReadByTorchsLoader) {
  auto loader = torch::data::make_data_loader<torch::data::samplers::SequentialSampler>(TorchDataset{counting(5)}, 2);
  std::vector<std::int64_t> seen;
  for (const auto& batch : *loader) {
    for (const auto& sample : batch) seen.push_back(sample["index"].item<std::int64_t>());
  }
  EXPECT_EQ(seen, (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
}

TEST(TorchData, BatchesCanBeHadAsExamples) {
  DataLoader loader{from_torch(Theirs{}), {.batch_size = 2}};
  std::int64_t sum = 0;
  for (const auto example : examples(loader)) sum += example.target.sum().item<std::int64_t>() + example.data.size(0);
  EXPECT_EQ(sum, 100 + 5);
}

}  // namespace
}  // namespace troupe

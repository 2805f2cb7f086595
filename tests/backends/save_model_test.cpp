// Weights for Hugging Face's libraries.
#include "resume_run.hpp"

#include <troupe/tensor_files.hpp>

#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace troupe {
namespace {

using test::ResumeCase;
using test::run_ranks;
using test::sharded;
using test::TempDirectory;
using test::Training;
using enum ShardingStrategy;

std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator{directory}) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// Whether the directory holds these tensors, and nothing else; of tied ones the first.
void expect_weights(const std::filesystem::path& directory, const std::vector<std::pair<std::string, at::Tensor>>& expected, at::ScalarType type) {
  const auto read = read_model_directory(directory);
  std::size_t found = 0;
  for (const auto& [name, tensor] : expected) {
    if (name == "embedding.weight") continue;
    const auto at = read.find(name);
    ASSERT_NE(at, read.end()) << name;
    EXPECT_TRUE(at::equal(at->second, tensor.is_floating_point() ? tensor.to(type) : tensor)) << name;
    ++found;
  }
  EXPECT_EQ(read.size(), found);
}

TEST(SaveModel, WritesShardsWithAnIndexAndRemovesStaleOnes) {
  TempDirectory directory;
  std::ofstream{directory.path / "config.json"} << "{}";
  for (const int ranks : {1, 3}) {
    run_ranks(ranks, [&](TrainContext& context) {
      Training training{context, sharded(ShardParameters)};
      training.train(2);
      training.accelerator.save_model(training.net, directory.path, {.max_shard_size = 300});
      const auto expected = training.accelerator.get_state_dict(training.net);
      if (context.world_rank() == 0) {
        expect_weights(directory.path, expected, at::kFloat);
        EXPECT_THAT(names_in(directory.path), testing::IsSupersetOf({"config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors"}));
      }
      context.barrier();
      training.accelerator.save_model(training.net, directory.path);
      if (context.world_rank() == 0) {
        expect_weights(directory.path, expected, at::kFloat);
        EXPECT_THAT(names_in(directory.path), testing::ElementsAre("config.json", "model.safetensors"));
      }
      context.barrier();
    });
  }
}

TEST(SaveModel, RoundsTo16BitsWhereAsked) {
  TempDirectory directory;
  for (const auto& c : {ResumeCase{}, sharded(ShardGradients), sharded(ShardParameters, 2)}) {
    run_ranks(4, [&](TrainContext& context) {
      Training training{context, c};
      training.train(1);
      training.accelerator.save_model(training.net, directory.path, {.dtype = SaveModelOptions::Dtype::BF16});
      const auto expected = training.accelerator.get_state_dict(training.net);
      if (context.world_rank() == 0) expect_weights(directory.path, expected, at::kBFloat16);
      context.barrier();
    });
  }
}

TEST(ByteSize, ReadsWhatTransformersReads) {
  EXPECT_EQ(ByteSize{"10GB"}.bytes(), 10'000'000'000u);
  EXPECT_EQ(ByteSize{"5GiB"}.bytes(), 5ull << 30);
  EXPECT_EQ(ByteSize{"1.5KB"}.bytes(), 1500u);
  EXPECT_EQ(ByteSize{4096}.bytes(), 4096u);
  for (const auto* text : {"", "GB", "-1GB", "10 XB", "1e30GB"}) EXPECT_THROW(ByteSize{text}, Failure) << text;
}

}  // namespace
}  // namespace troupe

#include <gtest/gtest.h>

#include <unistd.h>

#include <fstream>
#include <troupe/errors.hpp>
#include <troupe/model_size.hpp>
#include <troupe/safetensors.hpp>

namespace troupe {
namespace {

namespace fs = std::filesystem;

class ModelSizeTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  /// Tensors of fp16 (or, by name, int64) with the given number of elements.
  void write(const std::string& file, const std::vector<std::pair<std::string, std::uint64_t>>& tensors) {
    static const std::vector<std::byte> zeros(1 << 16);
    std::vector<SafetensorsItem> items;
    for (const auto& [name, count] : tensors) {
      const bool integers = name.ends_with("position_ids");
      items.push_back({name, integers ? SafetensorsDtype::I64 : SafetensorsDtype::F16, {count},
                       std::span{zeros}.first(count * (integers ? 8 : 2))});
    }
    write_safetensors_file(folder_ / file, std::move(items));
  }
  void write_text(const std::string& file, const std::string& text) { std::ofstream{folder_ / file} << text; }

  fs::path folder_ = fs::temp_directory_path() / ("troupe_model_size_" + std::to_string(::getpid()));
};

TEST_F(ModelSizeTest, CountsLayersRootAndSmallParameters) {
  write("model.safetensors", {{"embed.weight", 100}, {"embed.position_ids", 7}, {"encoder.layer.0.a.weight", 40}, {"encoder.layer.0.a.bias", 4},
                              {"encoder.layer.11.a.weight", 50}, {"encoder.layer.11.a.bias", 5}, {"layer.norm", 3}});
  const auto size = read_model_size(folder_, 4);
  EXPECT_EQ(size.num_params, 100 + 44 + 55 + 3);
  EXPECT_EQ(size.largest_unit, 55);
  EXPECT_EQ(size.root_unit, 103);
  EXPECT_EQ(size.num_units, 3);
  EXPECT_EQ(size.num_persistent, 4);
}

TEST_F(ModelSizeTest, FollowsTheIndexOfShards) {
  write("model-00001-of-00002.safetensors", {{"model.layers.0.w", 10}, {"model.layers.1.w", 20}});
  write("model-00002-of-00002.safetensors", {{"model.layers.1.v", 5}, {"lm_head.weight", 8}});
  write_text("model.safetensors.index.json", R"({"weight_map": {"model.layers.0.w": "model-00001-of-00002.safetensors",
    "model.layers.1.w": "model-00001-of-00002.safetensors", "model.layers.1.v": "model-00002-of-00002.safetensors",
    "lm_head.weight": "model-00002-of-00002.safetensors"}})");
  const auto size = read_model_size(folder_);
  EXPECT_EQ(size.num_params, 43);
  EXPECT_EQ(size.largest_unit, 25);
  EXPECT_EQ(size.root_unit, 8);
  write_text("model.safetensors.index.json", R"({"weight_map": {"a": "../elsewhere.safetensors"}})");
  EXPECT_THROW((void)read_model_size(folder_), Failure);
  write_text("model.safetensors.index.json", "{");
  EXPECT_THROW((void)read_model_size(folder_), Failure);
}

TEST_F(ModelSizeTest, SaysWhenThereIsNoModel) {
  EXPECT_THROW((void)read_model_size(folder_), Failure);
  EXPECT_THROW((void)read_model_size(folder_ / "none"), Failure);
}

TEST_F(ModelSizeTest, ReadsTheHiddenSize) {
  EXPECT_EQ(read_hidden_size(folder_), std::nullopt);
  write_text("config.json", R"({"hidden_size": 384})");
  EXPECT_EQ(read_hidden_size(folder_), 384);
  write_text("config.json", R"({"hidden_sizes": [32, 96, 64]})");
  EXPECT_EQ(read_hidden_size(folder_), 96);
  write_text("config.json", "{}");
  EXPECT_EQ(read_hidden_size(folder_), std::nullopt);
}

}  // namespace
}  // namespace troupe

#include <troupe/llama_cost.hpp>

#include <gtest/gtest.h>

namespace troupe {
namespace {

TEST(LlamaCost, PresetsHaveThePublishedNumbersOfParameters) {
  const auto count = [](const char* name) { return model_size_of(*llama_preset(name)).num_params; };
  EXPECT_EQ(count("llama-2-7b"), 6'738'415'616);
  EXPECT_EQ(count("13b"), 13'015'864'320);
  EXPECT_EQ(count("70b"), 68'976'648'192);
  EXPECT_EQ(count("llama-3-8b"), 8'030'261'248);
  EXPECT_EQ(count("smollm2-135m"), 134'515'008);
  EXPECT_FALSE(llama_preset("llama-2-71b"));
}

TEST(LlamaCost, LoraTrainsWhatTheTemplateAsserts) {
  const auto size = model_size_of(*llama_preset("7b"), 8);
  EXPECT_EQ(size.num_params, 11'599'872);
  EXPECT_EQ(size.num_frozen, 6'738'415'616);
}

TEST(LlamaCost, FlopsFollowThePalmFormula) {
  const auto shape = *llama_preset("7b");
  // 6 (N - embedding) + 12 L H Q T
  EXPECT_DOUBLE_EQ(flops_per_token(shape, 512), 6.0 * (6'738'415'616 - 32000 * 4096) + 12.0 * 32 * 32 * 128 * 512);
  EXPECT_DOUBLE_EQ(flops_per_token(shape, 512, true), 4.0 * (6'738'415'616 - 32000 * 4096) + 12.0 * 32 * 32 * 128 * 512);
  const StepShape again{.rows = 1, .tokens = 512};
  EXPECT_NEAR(executed_flops_per_token(shape, again) / flops_per_token(shape, 512), 4.0 / 3, 0.02);
}

TEST(LlamaCost, CheckpointingKeepsLayerInputsAndOneLayer) {
  const auto shape = *llama_preset("7b");
  const StepShape with{.rows = 2, .tokens = 512};
  auto without = with;
  without.activation_checkpointing = false;
  EXPECT_GT(activation_bytes(shape, with), 2 * 512 * 2 * 32 * 4096LL);
  EXPECT_GT(activation_bytes(shape, without), 10 * activation_bytes(shape, with));
  auto twice = with;
  twice.rows = 4;
  EXPECT_EQ(activation_bytes(shape, twice), 2 * activation_bytes(shape, with));
}

TEST(LlamaCost, TrafficIsTwoGathersAndOneScatter) {
  const ModelSize model{.num_params = 100};
  EXPECT_DOUBLE_EQ(zero3_traffic_bytes(model, 4, 2, 4), 0.75 * (2 * 2 * 100 + 4 * 100));
  EXPECT_DOUBLE_EQ(zero3_traffic_bytes(model, 1, 2, 4), 0);
}

}  // namespace
}  // namespace troupe

// Damaged configuration files: an error or a result, never a crash, a hang or another exception.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <random>
#include <troupe/accelerate_config.hpp>
#include <troupe/errors.hpp>

namespace troupe {
namespace {

std::string text_of(const std::string& name) {
  std::ifstream in{std::string{TROUPE_TEST_CONFIG} + "/" + name, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

/// Whether the text was taken; what is refused must be refused with a message.
bool taken(const std::string& text, bool json) {
  try {
    const ConfigFacts facts{.num_processes = 2, .batch_sizes = {4}, .hidden_sizes = {8}, .partial = true};
    (void)to_text(json ? DeepSpeedPlugin::from_json("{" + text).resolve(facts) : AccelerateConfig::from_text(text, "f.yaml").resolve(facts));
    return true;
  } catch (const Failure& failure) {
    EXPECT_NE(std::string{failure.what()}, "");
    return false;
  }
}

void damage(const std::string& name, bool json) {
  auto whole = text_of(name);
  ASSERT_FALSE(whole.empty());
  if (json) whole = whole.substr(1);  // the brace says that it is no path
  ASSERT_TRUE(taken(whole, json));
  for (std::size_t length = 0; length < whole.size(); length += 3) (void)taken(whole.substr(0, length), json);
  std::mt19937 draw{7};
  int refused = 0;
  for (int round = 0; round < 1500; ++round) {
    auto text = whole;
    for (unsigned flips = 1 + draw() % 3; flips > 0; --flips) text[draw() % text.size()] ^= static_cast<char>(1U << (draw() % 8));
    if (round % 5 == 0) text.insert(draw() % text.size(), text, draw() % text.size(), draw() % 40);
    refused += taken(text, json) ? 0 : 1;
  }
  EXPECT_GT(refused, 500);
}

TEST(ConfigFuzz, DamagedJsonIsRefusedOrTaken) { damage("guide_deepspeed.json", true); }
TEST(ConfigFuzz, DamagedDeepSpeedYamlIsRefusedOrTaken) { damage("deepspeed.yaml", false); }
TEST(ConfigFuzz, DamagedFsdpYamlIsRefusedOrTaken) { damage("fsdp.yaml", false); }
TEST(ConfigFuzz, DamagedMultiGpuYamlIsRefusedOrTaken) { damage("multi_gpu.yaml", false); }

}  // namespace
}  // namespace troupe

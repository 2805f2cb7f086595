#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include <troupe/generate.hpp>
#include <troupe/gguf_convert.hpp>
#include <troupe/llama.hpp>

#include "golden.hpp"

// transformers 5.23.0's numbers for SmolLM2-135M-Instruct (tests/golden/d2_smollm2). The weights are not kept here: `tools/bootstrap smollm2`
// brings them as GGUF, which is converted in fp32.

namespace troupe {
namespace {

std::filesystem::path gguf() {
  const char *const cache = std::getenv("TROUPE_CACHE"), *const home = std::getenv("HOME");
  const std::filesystem::path folder = cache ? cache : std::filesystem::path{home ? home : ""} / ".cache" / "troupe";
  return folder / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf";
}

class smollm_golden : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(gguf())) GTEST_SKIP() << "there is no " << gguf() << "; tools/bootstrap smollm2 brings it";
    const auto folder = test::fresh_directory("smollm_golden");
    GgufConversion conversion;
    conversion.dtype = SafetensorsDtype::F32;
    (void)convert_gguf(gguf(), folder / "model", conversion);
    model_ = LlamaForCausalLM::from_pretrained(folder / "model");
    std::filesystem::remove_all(folder);  // what is mapped stays
  }
  const nlohmann::json golden_ = test::read_json(test::golden("d2_smollm2") / "golden.json");
  LlamaForCausalLM model_{nullptr};
};

TEST_F(smollm_golden, LossArgMaxAndTopTenAreTheReferences) {
  const c10::AutoGradMode no_graph{false};
  for (const auto& example : golden_.at("cases")) {
    const auto ids = at::tensor(example.at("ids").get<std::vector<std::int64_t>>()).unsqueeze(0);
    const auto out = model_({{"input_ids", ids}, {"labels", ids}}, {.logits = LlamaForwardOptions::Logits::All});
    EXPECT_NEAR(out.loss.item<double>(), example.at("loss").get<double>(), 1e-3);
    const auto logits_TV = out.logits_BTV[0];
    const auto argmax = logits_TV.argmax(1);
    for (std::int64_t t = 0; t < ids.size(1); ++t) EXPECT_EQ(argmax[t].item<std::int64_t>(), example.at("argmax")[static_cast<std::size_t>(t)].get<std::int64_t>());
    const auto [values, tokens] = logits_TV[-1].topk(10);
    for (std::int64_t i = 0; i < 10; ++i) {
      const auto& want = example.at("last_top10")[static_cast<std::size_t>(i)];
      EXPECT_EQ(tokens[i].item<std::int64_t>(), want[0].get<std::int64_t>());
      EXPECT_NEAR(values[i].item<double>(), want[1].get<double>(), 5e-3);
    }
  }
}

TEST_F(smollm_golden, GreedyTextIsTheReferencesAloneAndInABatch) {
  std::vector<std::vector<std::int64_t>> prompts, want;
  for (const auto& example : golden_.at("cases")) {
    prompts.push_back(example.at("ids").get<std::vector<std::int64_t>>());
    want.push_back(example.at("greedy_16").get<std::vector<std::int64_t>>());
  }
  GenerateOptions options;
  options.max_new_tokens = 16;
  options.eos_token_ids.emplace();  // the reference goes on after it
  EXPECT_EQ(generate(model_, prompts, options).tokens, want);
  for (std::size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(generate(model_, {prompts[i]}, options).tokens.front(), want[i]);
}

}  // namespace
}  // namespace troupe

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <troupe/generate.hpp>
#include <troupe/llama.hpp>
#include <troupe/lora.hpp>
#include <troupe/tensor_files.hpp>

#include "golden.hpp"

// transformers 5.23.0's and peft 0.21.2's numbers for a small random Llama (tests/golden/d_llama). Tolerances are the golden README's.

namespace troupe {
namespace {

using nlohmann::json;

double max_abs(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }
double l2(const at::Tensor& a) { return a.to(at::kDouble).norm().item<double>(); }

class llama_golden : public ::testing::Test {
 protected:
  const std::filesystem::path folder_ = test::golden("d_llama");
  const TensorMap io_ = read_safetensors(folder_ / "io.safetensors");
  const json golden_ = test::read_json(folder_ / "golden.json");
  const json lora_ = test::read_json(folder_ / "lora_golden.json");
  LlamaForCausalLM model_ = LlamaForCausalLM::from_pretrained(folder_ / "model");

  Batch batch() const { return {{"input_ids", io_.at("input_ids")}, {"attention_mask", io_.at("attention_mask")}, {"labels", io_.at("labels")}}; }
  at::Tensor real() const { return io_.at("attention_mask").to(at::kBool).unsqueeze(-1); }
  std::vector<std::int64_t> greedy(std::size_t prompt) {
    const auto want = golden_.at("greedy_from_first_6_tokens_of_row0").get<std::vector<std::int64_t>>();
    std::vector<std::int64_t> tokens{want.begin(), want.begin() + static_cast<std::ptrdiff_t>(prompt)};
    GenerateOptions options;
    options.max_new_tokens = static_cast<std::int64_t>(want.size() - prompt);
    options.eos_token_ids.emplace();
    const auto made = generate(model_, {tokens}, options);
    tokens.insert(tokens.end(), made.tokens[0].begin(), made.tokens[0].end());
    return tokens;
  }
};

TEST_F(llama_golden, LogitsAndLossAreTheReferences) {
  model_->eval();
  const auto out = model_(batch(), {.logits = LlamaForwardOptions::Logits::All});
  EXPECT_LT(max_abs(out.logits_BTV * real(), io_.at("logits") * real()), 5e-5);
  EXPECT_NEAR(out.loss.item<double>(), golden_.at("loss").get<double>(), 1e-5);
  EXPECT_EQ(out.num_targets, (io_.at("labels").narrow(1, 1, 18) != -100).sum().item<std::int64_t>());
  const auto without_labels = model_({{"input_ids", io_.at("input_ids")}, {"attention_mask", io_.at("attention_mask")}});
  EXPECT_FALSE(without_labels.loss.defined());
  EXPECT_LT(max_abs(without_labels.logits_BTV * real(), io_.at("logits") * real()), 5e-5);
}

TEST_F(llama_golden, LossOfAWholeRowIsTheReferences) {
  const auto ids = io_.at("input_ids").narrow(0, 0, 1);
  const auto out = model_({{"input_ids", ids}, {"labels", ids}});
  EXPECT_NEAR(out.loss.item<double>(), golden_.at("loss_row0_all_tokens").get<double>(), 1e-5);
  EXPECT_FALSE(out.logits_BTV.defined());
}

TEST_F(llama_golden, EveryGradientIsTheReferences) {
  model_(batch()).loss.backward();
  const auto expected = read_safetensors(folder_ / "grads.safetensors");
  std::size_t seen = 0;
  for (const auto& item : model_->named_parameters()) {
    ASSERT_TRUE(expected.contains(item.key())) << item.key();
    const auto& want = expected.at(item.key());
    EXPECT_LT(l2(item.value().grad() - want) / l2(want), 1e-4) << item.key();
    ++seen;
  }
  EXPECT_EQ(seen, expected.size());
}

TEST_F(llama_golden, GreedyTextIsTheReferences) {
  EXPECT_EQ(greedy(6), golden_.at("greedy_from_first_6_tokens_of_row0").get<std::vector<std::int64_t>>());
}

TEST_F(llama_golden, BothLayoutsOfTheConfigurationSayTheSame) {
  const auto five = LlamaConfig::from_file(folder_ / "model" / "config.json"), four = LlamaConfig::from_file(folder_ / "model" / "config.v4.json");
  for (const auto& c : {five, four}) {
    EXPECT_EQ(c.hidden_size, 64);
    EXPECT_EQ(c.kv_heads(), 2);
    EXPECT_EQ(c.rope_theta, 10000);
    EXPECT_EQ(c.rope_scaling.rope_type, "default");
    EXPECT_EQ(c.dtype, DType::F32);
    EXPECT_EQ(c.eos_token_ids, std::vector<std::int64_t>{2});
    EXPECT_EQ(c.num_parameters(), 151'872);
  }
}

TEST_F(llama_golden, AnAdapterThatWasNotTrainedChangesNothing) {
  const auto before = model_(batch(), {.logits = LlamaForwardOptions::Logits::All}).logits_BTV;
  load_adapter(*model_, folder_ / "adapter_init");
  const auto after = model_(batch(), {.logits = LlamaForwardOptions::Logits::All}).logits_BTV;
  EXPECT_EQ(max_abs(before, after), 0);
}

TEST_F(llama_golden, LogitsWithATrainedAdapterAreTheReferencesMergedOrNot) {
  const auto want = read_safetensors(folder_ / "lora_io.safetensors").at("logits_with_adapter_final") * real();
  const auto logits = [this] { return model_(batch(), {.logits = LlamaForwardOptions::Logits::All}).logits_BTV * real(); };
  const auto plain = logits();
  std::map<std::string, at::Tensor> base;
  for (const auto& item : model_->named_parameters()) base[item.key()] = item.value().detach().clone();
  load_adapter(*model_, folder_ / "adapter_final");
  EXPECT_LT(max_abs(logits(), want), 1e-4);
  merge_lora(*model_);
  EXPECT_LT(max_abs(logits(), want), 1e-4);
  EXPECT_GT(max_abs(logits(), plain), 0.1);
  unmerge_lora(*model_);
  for (const auto& [name, tensor] : base) EXPECT_TRUE(model_->named_parameters()[name].equal(tensor)) << name;
  merge_and_unload(*model_);
  EXPECT_EQ(lora_config(*model_), nullptr);
  for (const auto& item : model_->named_parameters()) {
    const auto& expected = lora_.at("merged_param").at(item.key());
    EXPECT_TRUE(item.value().requires_grad());
    EXPECT_NEAR(l2(item.value().detach()), expected.at("l2").get<double>(), 1e-5) << item.key();
    EXPECT_NEAR(item.value().sum().item<double>(), expected.at("sum").get<double>(), 1e-3) << item.key();
  }
}

TEST_F(llama_golden, AnAdapterIsSavedAsItWasRead) {
  const auto out = test::fresh_directory("llama_adapter");
  load_adapter(*model_, folder_ / "adapter_final");
  EXPECT_EQ(count_parameters(*model_).trained, lora_.at("trainable_parameters").get<std::int64_t>());
  save_adapter(*model_, out);
  const auto ours = read_safetensors(out / "adapter_model.safetensors"), theirs = read_safetensors(folder_ / "adapter_final" / "adapter_model.safetensors");
  ASSERT_EQ(ours.size(), theirs.size());
  for (const auto& [name, tensor] : theirs) EXPECT_TRUE(ours.at(name).equal(tensor)) << name;
  const auto config = test::read_json(out / "adapter_config.json");
  EXPECT_EQ(config.at("r"), 8);
  EXPECT_EQ(config.at("lora_alpha"), 16);
  EXPECT_EQ(config.at("peft_type"), "LORA");
}

TEST_F(llama_golden, TrainsTheFormulasNumberOfParameters) {
  const LoraConfig config{.r = 8, .lora_alpha = 16, .target_modules = {"q_proj", "k_proj", "v_proj", "o_proj"}};
  // Σ r · (in + out): q and o are 64 to 64, k and v 64 to 32; two layers
  EXPECT_EQ(lora_parameter_count(*model_, config), 2 * 8 * (2 * (64 + 64) + 2 * (64 + 32)));
  apply_lora(*model_, config);
  EXPECT_EQ(count_parameters(*model_).trained, lora_.at("trainable_parameters").get<std::int64_t>());
  EXPECT_EQ(trainable_parameters(*model_).size(), 16U);
}

}  // namespace
}  // namespace troupe

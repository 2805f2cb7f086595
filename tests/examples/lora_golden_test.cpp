#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <troupe/llama.hpp>
#include <troupe/lora.hpp>
#include <troupe/tensor_files.hpp>

#include "golden.hpp"

// peft 0.21.2's numbers for adapters of every kind (tests/golden/g_lora). Tolerances are the golden README's.

namespace troupe {
namespace {

double max_abs(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

class LoraKinds : public testing::TestWithParam<const char*> {
 protected:
  const std::filesystem::path folder_ = test::golden("g_lora");
  const std::string case_ = GetParam();
  const TensorMap io_ = read_safetensors(folder_ / "io.safetensors");
  const nlohmann::json golden_ = test::read_json(folder_ / "golden.json").at("cases").at(case_);
  LlamaForCausalLM model_ = LlamaForCausalLM::from_pretrained(folder_ / "model");

  CausalLMOutput run() { return model_({{"input_ids", io_.at("input_ids")}, {"labels", io_.at("input_ids")}}, {.logits = LlamaForwardOptions::Logits::All}); }
  at::Tensor wanted(const char* what) const { return io_.at(case_ + "." + what); }
};

TEST_P(LoraKinds, GivePeftsLogitsMergedOrNot) {
  const auto before = run().logits_BTV.detach().clone();
  load_adapter(*model_, folder_ / case_);
  EXPECT_LT(max_abs(run().logits_BTV, wanted("logits")), 2e-5);
  EXPECT_GT(max_abs(before, wanted("logits")), 1e-2) << "the adapter changes nothing";
  merge_and_unload(*model_);
  EXPECT_LT(max_abs(run().logits_BTV, wanted("merged")), 2e-5);
}

TEST_P(LoraKinds, TrainWhatPeftTrains) {
  load_adapter(*model_, folder_ / case_);
  const auto want = golden_.at("trainable_parameters").get<std::int64_t>();
  EXPECT_EQ(count_parameters(*model_).trained, want);
  auto fresh = LlamaForCausalLM::from_pretrained(folder_ / "model");
  const auto config = LoraConfig::from_file(folder_ / case_ / "adapter_config.json");
  EXPECT_EQ(lora_parameter_count(*fresh, config), want);
  apply_lora(*fresh, config);
  EXPECT_EQ(count_parameters(*fresh).trained, want);

  const auto loss = run().loss;
  EXPECT_NEAR(loss.item<double>(), golden_.at("loss").get<double>(), 1e-5);
  loss.backward();
  double squares = 0;
  for (const auto& parameter : trainable_parameters(*model_)) squares += std::pow(parameter.grad().norm().item<double>(), 2);
  const auto norm = golden_.at("grad_norm").get<double>();
  EXPECT_NEAR(std::sqrt(squares), norm, 1e-4 * norm);
}

TEST_P(LoraKinds, AreSavedAsPeftSavesThem) {
  const auto out = test::fresh_directory("lora_" + case_);
  load_adapter(*model_, folder_ / case_);
  save_adapter(*model_, out);
  const auto ours = read_safetensors(out / "adapter_model.safetensors"), theirs = read_safetensors(folder_ / case_ / "adapter_model.safetensors");
  for (const auto& [name, tensor] : theirs) {
    ASSERT_TRUE(ours.contains(name)) << name;
    EXPECT_TRUE(ours.at(name).equal(tensor)) << name;
  }
  EXPECT_EQ(ours.size(), theirs.size());
  const auto our_config = test::read_json(out / "adapter_config.json"), their_config = test::read_json(folder_ / case_ / "adapter_config.json");
  for (const char* key : {"r", "lora_alpha", "bias", "use_rslora", "modules_to_save"}) EXPECT_EQ(our_config.at(key), their_config.at(key)) << key;
  std::filesystem::remove_all(out);
}

INSTANTIATE_TEST_SUITE_P(Peft, LoraKinds,
                         testing::Values("rslora", "pattern", "all_linear", "suffix", "bias_lora_only", "bias_all", "saved_head", "saved_both"),
                         [](const auto& each) { return std::string(each.param); });

class LoraRefusals : public testing::Test {
 protected:
  const std::filesystem::path out_ = test::fresh_directory("lora_refusals");
  LlamaForCausalLM model_ = LlamaForCausalLM::from_pretrained(test::golden("g_lora") / "model");
  void SetUp() override {
    std::filesystem::copy(test::golden("g_lora") / "rslora", out_, std::filesystem::copy_options::overwrite_existing | std::filesystem::copy_options::recursive);
  }
  void TearDown() override { std::filesystem::remove_all(out_); }
  void change(const std::string& key, const nlohmann::json& value) {
    auto config = test::read_json(out_ / "adapter_config.json");
    config[key] = value;
    std::ofstream{out_ / "adapter_config.json"} << config;
  }
  void expect_refused(const std::string& text) {
    EXPECT_NE(test::failure_of([&] { load_adapter(*model_, out_); }).find(text), std::string::npos) << test::failure_of([&] { load_adapter(*model_, out_); });
    EXPECT_EQ(lora_config(*model_), nullptr) << "half an adapter is in the model";
    EXPECT_EQ(count_parameters(*model_).trained, count_parameters(*model_).all);
  }
};

TEST_F(LoraRefusals, AnAdapterOfAnotherRank) {
  change("r", 8);
  expect_refused("lora_A");
}

TEST_F(LoraRefusals, AnAdapterOfAnotherBase) {
  auto other = LlamaForCausalLM::from_pretrained(test::golden("d_llama") / "model");
  EXPECT_NE(test::failure_of([&] { load_adapter(*other, out_); }).find("q_proj"), std::string::npos);
  EXPECT_EQ(lora_config(*other), nullptr);
}

TEST_F(LoraRefusals, AKindThatIsNotBuilt) {
  change("use_dora", true);
  expect_refused("use_dora");
}

TEST_F(LoraRefusals, AnAdapterWithAModuleLessThanItsConfigurationSays) {
  change("target_modules", {"q_proj", "v_proj", "k_proj"});
  expect_refused("k_proj");
}

}  // namespace
}  // namespace troupe

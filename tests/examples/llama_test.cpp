#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <fstream>
#include <map>
#include <models/rope.hpp>
#include <nlohmann/json.hpp>
#include <troupe/errors.hpp>
#include <troupe/fingerprint.hpp>
#include <troupe/generate.hpp>
#include <troupe/llama.hpp>
#include <troupe/lora.hpp>
#include <troupe/parameter_source.hpp>
#include <troupe/random.hpp>
#include <troupe/tensor_files.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using test::failure_of;
using Logits = LlamaForwardOptions::Logits;

LlamaConfig small() {
  return {.vocab_size = 61, .hidden_size = 48, .intermediate_size = 80, .num_hidden_layers = 2, .num_attention_heads = 4, .num_key_value_heads = 2,
          .max_position_embeddings = 64, .initializer_range = 0.3, .eos_token_ids = {}};
}

LlamaForCausalLM make(LlamaConfig config = small(), DType dtype = DType::F32) {
  rank_generator().set_current_seed(7);
  return LlamaForCausalLM{std::move(config), dtype};
}

at::Tensor some_ids(std::int64_t rows, std::int64_t tokens, std::int64_t seed = 3) {
  rank_generator().set_current_seed(static_cast<std::uint64_t>(seed));
  return at::randint(0, 61, {rows, tokens}, rank_generator(), at::kLong);
}

double max_abs(const at::Tensor& a, const at::Tensor& b) { return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>(); }

std::map<std::string, at::Tensor> gradients(const LlamaForCausalLM& model) {
  std::map<std::string, at::Tensor> all;
  for (auto& item : model->named_parameters()) {
    if (item.value().grad().defined()) all[item.key()] = item.value().grad().clone();
    item.value().mutable_grad().reset();
  }
  return all;
}

/// Weights, biases and adapters that are not at their beginnings.
void shake(const LlamaForCausalLM& model) {
  const c10::AutoGradMode no_graph{false};
  for (auto& item : model->named_parameters()) item.value().add_(at::zeros_like(item.value()).normal_(0, 0.1, rank_generator()));
}

TEST(Llama, KernelsGiveWhatTheGeneralOperationsGiveInDouble) {
  auto config = small();
  config.attention_bias = config.mlp_bias = true;
  auto fast = make(config);
  shake(fast);
  auto exact = make(config, DType::F64);
  {
    const c10::AutoGradMode no_graph{false};
    for (auto& item : exact->named_parameters()) item.value().copy_(fast->named_parameters()[item.key()]);
  }
  const auto ids = some_ids(2, 9);
  const Batch batch{{"input_ids", ids}, {"labels", ids}};
  const auto a = fast(batch, {.logits = Logits::All}), b = exact(batch, {.logits = Logits::All});
  EXPECT_LT(max_abs(a.logits_BTV, b.logits_BTV), 2e-5);
  EXPECT_NEAR(a.loss.item<double>(), b.loss.item<double>(), 2e-6);
  a.loss.backward();
  b.loss.backward();
  const auto mine = gradients(fast), theirs = gradients(exact);
  ASSERT_EQ(mine.size(), theirs.size());
  for (const auto& [name, grad] : theirs) {
    const auto scale = grad.norm().item<double>();
    EXPECT_LT((mine.at(name).to(at::kDouble) - grad).norm().item<double>(), 2e-5 * std::max(scale, 1e-3)) << name;
  }
}

TEST(Llama, TheLossIsThatOfTheLogitsOverLabelledTokens) {
  auto model = make();
  const auto ids = some_ids(3, 12);
  auto labels = ids.clone();
  labels.narrow(1, 0, 5).fill_(-100);
  labels[1].fill_(-100);
  const auto out = model({{"input_ids", ids}, {"labels", labels}}, {.logits = Logits::All});
  EXPECT_EQ(out.num_targets, 14);  // tokens 5 to 11 of two rows
  const auto logp = out.logits_BTV.to(at::kDouble).log_softmax(-1).narrow(1, 0, 11);
  const auto target = labels.narrow(1, 1, 11);
  const auto picked = logp.gather(2, target.clamp_min(0).unsqueeze(2)).squeeze(2).masked_select(target != -100);
  EXPECT_NEAR(out.loss.item<double>(), -picked.mean().item<double>(), 1e-6);
  const auto without = model({{"input_ids", ids}, {"labels", at::full_like(ids, -100)}});
  EXPECT_EQ(without.loss.item<double>(), 0);
  EXPECT_EQ(without.num_targets, 0);
  without.loss.backward();
  for (const auto& [name, grad] : gradients(model)) EXPECT_EQ(grad.abs().max().item<double>(), 0) << name;
}

TEST(Llama, PaddingOnEitherSideChangesNothing) {
  auto model = make();
  const auto ids = some_ids(1, 8);
  const auto alone = model({{"input_ids", ids}}).logits_BTV;
  const auto pads = at::zeros({1, 3}, at::kLong);
  const auto ones = at::ones({1, 8}, at::kLong);
  const auto left = model({{"input_ids", at::cat({pads, ids}, 1)}, {"attention_mask", at::cat({pads, ones}, 1)}}).logits_BTV;
  const auto right = model({{"input_ids", at::cat({ids, pads}, 1)}, {"attention_mask", at::cat({ones, pads}, 1)}}).logits_BTV;
  EXPECT_LT(max_abs(left.narrow(1, 3, 8), alone), 5e-5);
  EXPECT_LT(max_abs(right.narrow(1, 0, 8), alone), 5e-5);
}

TEST(Llama, PackedDocumentsDoNotSeeEachOther) {
  auto model = make();
  const auto a = some_ids(1, 5, 1), b = some_ids(1, 7, 2);
  const auto ids = at::cat({a, b, at::zeros({1, 2}, at::kLong)}, 1);
  const auto documents = at::cat({at::full({1, 5}, 1, at::kLong), at::full({1, 7}, 2, at::kLong), at::zeros({1, 2}, at::kLong)}, 1);
  auto labels = ids.clone();
  labels.narrow(1, 12, 2).fill_(-100);
  const auto packed = model({{"input_ids", ids}, {"document_ids", documents}, {"labels", labels}}, {.logits = Logits::All});
  const auto one = model({{"input_ids", a}, {"labels", a}}, {.logits = Logits::All}), two = model({{"input_ids", b}, {"labels", b}}, {.logits = Logits::All});
  EXPECT_LT(max_abs(packed.logits_BTV.narrow(1, 0, 5), one.logits_BTV), 5e-5);
  EXPECT_LT(max_abs(packed.logits_BTV.narrow(1, 5, 7), two.logits_BTV), 5e-5);
  EXPECT_EQ(packed.num_targets, 4 + 6);
  EXPECT_NEAR(packed.loss.item<double>() * 10, one.loss.item<double>() * 4 + two.loss.item<double>() * 6, 1e-4);
}

TEST(Llama, ActivationCheckpointingGivesTheSameGradients) {
  auto model = make();
  const auto ids = some_ids(2, 10);
  const Batch batch{{"input_ids", ids}, {"labels", ids}};
  model(batch).loss.backward();
  const auto plain = gradients(model);
  set_activation_checkpointing(*model, true);
  model(batch).loss.backward();
  const auto again = gradients(model);
  ASSERT_EQ(plain.size(), again.size());
  for (const auto& [name, grad] : plain) EXPECT_TRUE(grad.equal(again.at(name))) << name;
}

TEST(Llama, TokensOneByOneThroughTheCacheAreAsTheRowAtOnce) {
  const c10::AutoGradMode no_graph{false};
  auto model = make();
  const auto ids = some_ids(2, 9);
  const auto whole = model({{"input_ids", ids}}).logits_BTV;
  KvCache cache{model->config(), 2, 4, DType::F32};  // too small: it grows
  auto first = model({{"input_ids", ids.narrow(1, 0, 4)}}, {.cache = &cache}).logits_BTV;
  auto second = model({{"input_ids", ids.narrow(1, 4, 3)}}, {.cache = &cache}).logits_BTV;
  auto third = model({{"input_ids", ids.narrow(1, 7, 1)}}, {.cache = &cache}).logits_BTV;
  auto fourth = model({{"input_ids", ids.narrow(1, 8, 1)}}, {.cache = &cache}).logits_BTV;
  EXPECT_LT(max_abs(at::cat({first, second, third, fourth}, 1), whole), 5e-5);
  EXPECT_EQ(cache.length(), 9);
}

TEST(Llama, RotaryScalingsAreTransformers) {
  // cos and sin of position 37, from transformers 5.23.0: head size 16, theta 10000, 64 positions
  struct Case {
    RopeScaling scaling;
    std::int64_t length;
    std::vector<double> cos, sin;
  };
  const auto scaled = [](const char* type, double factor, std::int64_t original) {
    RopeScaling scaling;
    scaling.rope_type = type;
    scaling.factor = factor;
    scaling.original_max_position_embeddings = original;
    return scaling;
  };
  const Case cases[] = {
      {scaled("linear", 4, 0), 50,
       {-0.9847652, -0.9766583, 0.6018346, 0.9575229, 0.9957249, 0.9995722, 0.9999572, 0.9999957},
       {0.1738895, 0.2147989, 0.7986208, 0.2883572, 0.0923681, 0.0292469, 0.0092499, 0.0029251}},
      {scaled("dynamic", 2, 0), 100,
       {0.7654141, -0.4702767, -0.9874693, 0.6622024, 0.9712158, 0.997669, 0.999812, 0.9999849},
       {-0.6435381, -0.882519, 0.1578112, 0.749325, 0.2382014, 0.0682396, 0.0193901, 0.0055061}},
      {scaled("yarn", 4, 16), 50,
       {0.871523, -1.1120518, 0.6852666, 1.0902638, 1.1337616, 1.1381423, 1.1385807, 1.1386245},
       {-0.7327514, 0.2445763, 0.9093331, 0.3283319, 0.1051731, 0.0333014, 0.0105322, 0.0033306}},
      {scaled("llama3", 8, 32), 50,
       {0.7654141, -0.9193046, 0.8949398, 0.9893237, 0.9989306, 0.9998931, 0.9999893, 0.9999989},
       {-0.6435381, -0.3935468, 0.4461869, 0.1457345, 0.0462335, 0.014625, 0.004625, 0.0014626}}};
  for (const auto& c : cases) {
    LlamaConfig config;
    config.hidden_size = 64;
    config.num_attention_heads = 4;
    config.max_position_embeddings = 64;
    config.rope_scaling = c.scaling;
    detail::RopeTables tables{config};
    const auto table = tables.table(c.length, c.length);
    for (std::int64_t i = 0; i < 8; ++i) {
      EXPECT_NEAR(table.cos_PK2[37][i].item<double>(), c.cos[static_cast<std::size_t>(i)], 3e-6) << c.scaling.rope_type << " " << i;
      EXPECT_NEAR(table.sin_PK2[37][i].item<double>(), c.sin[static_cast<std::size_t>(i)], 3e-6) << c.scaling.rope_type << " " << i;
    }
  }
}

TEST(Llama, RefusesBatchesThatDoNotFitByName) {
  auto model = make();
  EXPECT_THAT(failure_of([&] { (void)model({{"input_ids", some_ids(1, 65)}}); }), HasSubstr("longer than this model's context of 64"));
  EXPECT_THAT(failure_of([&] { (void)model({{"input_ids", at::full({1, 2}, 61, at::kLong)}}); }), HasSubstr("'input_ids' has 61, outside of 0 to 60"));
  const auto ids = some_ids(1, 4);
  EXPECT_THAT(failure_of([&] { (void)model({{"input_ids", ids}, {"labels", at::full_like(ids, 70)}}); }), HasSubstr("'labels' has 70"));
  EXPECT_THAT(failure_of([&] { (void)model({{"input_ids", ids}, {"attention_mask", some_ids(1, 3)}}); }), HasSubstr("'attention_mask' has shape [1, 3]"));
}

class LlamaFiles : public ::testing::Test {
 protected:
  const std::filesystem::path folder_ = test::fresh_directory("llama_files");
  void TearDown() override { std::filesystem::remove_all(folder_); }
};

TEST_F(LlamaFiles, AModelIsReadAsItWasSavedTiedOrNotWholeOrInShards) {
  for (const bool tied : {false, true}) {
    for (const std::uint64_t shard : {std::uint64_t{0}, std::uint64_t{20'000}}) {
      auto config = small();
      config.tie_word_embeddings = tied;
      config.attention_bias = true;
      config.rope_scaling.rope_type = "llama3";
      config.rope_scaling.factor = 8;
      config.rope_scaling.original_max_position_embeddings = 16;
      auto model = make(config);
      shake(model);
      model->save_pretrained(folder_, shard);
      EXPECT_EQ(std::filesystem::exists(folder_ / "model.safetensors.index.json"), shard != 0);
      EXPECT_EQ(read_model_directory(folder_).contains("lm_head.weight"), !tied);
      auto again = LlamaForCausalLM::from_pretrained(folder_);
      EXPECT_EQ(again->config().rope_scaling.rope_type, "llama3");
      const auto ids = some_ids(1, 6);
      EXPECT_TRUE(model({{"input_ids", ids}}).logits_BTV.equal(again({{"input_ids", ids}}).logits_BTV));
      EXPECT_EQ(count_parameters(*again).all, config.num_parameters());
    }
  }
}

TEST_F(LlamaFiles, DeferredParametersHaveNoMemoryUntilTheyAreAskedFor) {
  auto model = make();
  model->save_pretrained(folder_);
  auto deferred = LlamaForCausalLM::from_pretrained(folder_, {.deferred = true});
  EXPECT_TRUE(is_deferred(*deferred));
  EXPECT_EQ(count_parameters(*deferred).all, small().num_parameters());
  EXPECT_EQ(fingerprint(*deferred), fingerprint(*model));
  EXPECT_ANY_THROW((void)deferred->parameters().front().sum());
  materialize(*deferred);
  for (const auto& item : model->named_parameters()) EXPECT_TRUE(item.value().equal(deferred->named_parameters()[item.key()])) << item.key();
}

TEST_F(LlamaFiles, ALargerVocabularyGetsTheMeanOfItsRows) {
  auto model = make();
  model->save_pretrained(folder_);
  auto larger = LlamaForCausalLM::from_pretrained(folder_, {.vocab_size = 64});
  const auto rows = larger->named_parameters()["lm_head.weight"];
  ASSERT_EQ(rows.size(0), 64);
  const auto old = model->named_parameters()["lm_head.weight"];
  EXPECT_TRUE(rows.narrow(0, 0, 61).equal(old));
  for (std::int64_t row = 61; row < 64; ++row) EXPECT_LT(max_abs(rows[row], old.to(at::kDouble).mean(0)), 1e-6);
  EXPECT_EQ(larger->config().vocab_size, 64);
  EXPECT_THAT(failure_of([&] { (void)LlamaForCausalLM::from_pretrained(folder_, {.vocab_size = 60}); }), HasSubstr("cannot shrink to 60"));
}

TEST_F(LlamaFiles, WhatIsMissingOrDoesNotFitIsNamed) {
  auto model = make();
  model->save_pretrained(folder_, 20'000);
  const auto load = [&] { (void)LlamaForCausalLM::from_pretrained(folder_); };
  const auto index = test::read_json(folder_ / "model.safetensors.index.json");
  const auto shard = index.at("weight_map").at("model.layers.1.mlp.up_proj.weight").get<std::string>();
  std::filesystem::rename(folder_ / shard, folder_ / "away");
  EXPECT_THAT(failure_of(load), HasSubstr(shard));
  std::filesystem::rename(folder_ / "away", folder_ / shard);
  EXPECT_EQ(failure_of(load), "nothing was thrown");

  auto config = small();
  config.intermediate_size = 96;
  config.save(folder_ / "config.json");
  EXPECT_THAT(failure_of(load), HasSubstr("gate_proj.weight' has shape [80, 48], config.json wants [96, 48]"));
  config = small();
  config.attention_bias = true;
  config.save(folder_ / "config.json");
  EXPECT_THAT(failure_of(load), HasSubstr("lacks the tensor 'model.layers.0.self_attn.q_proj.bias' of shape [48]"));
  config = small();
  config.num_hidden_layers = 1;
  config.save(folder_ / "config.json");
  EXPECT_THAT(failure_of(load), HasSubstr("has the tensor 'model.layers.1."));
}

TEST_F(LlamaFiles, ConfigurationsThatMakeNoLlamaAreRefusedByKey) {
  const auto refuses = [&](const nlohmann::json& object, const std::string& text) {
    std::ofstream{folder_ / "config.json"} << object;
    EXPECT_THAT(failure_of([&] { (void)LlamaConfig::from_file(folder_ / "config.json"); }), HasSubstr(text));
  };
  refuses({{"rope_scaling", {{"type", "longrope"}, {"factor", 2}}}}, "rope type 'longrope' is none of");
  refuses({{"model_type", "mixtral"}}, "model_type is \"mixtral\"");
  refuses({{"hidden_size", "big"}}, "'hidden_size' should be a number");
  refuses({{"num_attention_heads", 6}, {"num_key_value_heads", 4}, {"hidden_size", 96}}, "no multiple of num_key_value_heads 4");
  refuses({{"hidden_act", "gelu"}}, "hidden_act 'gelu'");
  refuses({{"rope_parameters", {{"rope_type", "linear"}}}}, "needs 'factor'");
}

}  // namespace
}  // namespace troupe

#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <models/decoder.hpp>
#include <models/sampling.hpp>
#include <numeric>
#include <troupe/generate.hpp>
#include <troupe/lora.hpp>
#include <troupe/random.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using Tokens = std::vector<std::int64_t>;
using Reason = Generated::Reason;

LlamaConfig small() {
  return {.vocab_size = 61, .hidden_size = 48, .intermediate_size = 80, .num_hidden_layers = 2, .num_attention_heads = 4, .num_key_value_heads = 2,
          .max_position_embeddings = 64, .initializer_range = 0.3, .attention_bias = true, .eos_token_ids = {}};
}

LlamaForCausalLM make(DType dtype = DType::F32) {
  rank_generator().set_current_seed(7);
  LlamaForCausalLM model{small(), dtype};
  const c10::AutoGradMode no_graph{false};
  for (auto& item : model->named_parameters()) {
    if (item.key().ends_with(".bias")) item.value().normal_(0, 0.1, rank_generator());
  }
  return model;
}

const std::vector<Tokens> prompts{{5, 17, 2, 40, 33}, {9}, {1, 2, 3, 4, 5, 6, 7}, {60, 0, 60}};

/// What the model itself says, over the whole row again for each token.
Tokens greedy_by_hand(LlamaForCausalLM& model, Tokens row, std::size_t count) {
  const c10::AutoGradMode no_graph{false};
  Tokens made;
  for (std::size_t i = 0; i < count; ++i) {
    made.push_back(model({{"input_ids", at::tensor(row).unsqueeze(0)}}).logits_BTV[0][-1].argmax().item<std::int64_t>());
    row.push_back(made.back());
  }
  return made;
}

TEST(Generate, GreedyTokensAreThoseOfTheWholeRowAloneAndInABatch) {
  auto model = make();
  GenerateOptions options{.max_new_tokens = 12};
  const auto batch = generate(model, prompts, options);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto want = greedy_by_hand(model, prompts[i], 12);
    EXPECT_EQ(batch.tokens[i], want) << i;
    EXPECT_EQ(generate(model, {prompts[i]}, options).tokens[0], want) << i;
    EXPECT_EQ(batch.reasons[i], Reason::MaxNewTokens);
  }
  std::vector<Tokens> many;  // more rows than the decoder takes
  for (int i = 0; i < 3; ++i) many.insert(many.end(), prompts.begin(), prompts.end());
  EXPECT_EQ(generate(model, many, options).tokens[9], batch.tokens[1]);
}

TEST(Generate, TheDecodersLogitsAreTheModels) {
  const c10::AutoGradMode no_graph{false};
  for (const auto dtype : {DType::F32, DType::BF16}) {
    auto model = make(dtype);
    apply_lora(*model, {.r = 4, .target_pattern = "all-linear"});
    for (auto& item : model->named_parameters()) {
      if (item.key().ends_with("lora_B.weight")) item.value().normal_(0, 0.1, rank_generator());
    }
    KvCache mine{model->config(), 2, 16, dtype}, theirs{model->config(), 2, 16, dtype};
    const auto ids = at::tensor(Tokens{1, 2, 3, 4, 5, 6}).view({2, 3});
    const auto mask = at::tensor(Tokens{1, 1, 1, 0, 1, 1}).view({2, 3});
    for (auto* cache : {&mine, &theirs}) (void)model({{"input_ids", ids}, {"attention_mask", mask}}, {.cache = cache});
    ASSERT_TRUE(Decoder::fits(*model, 2));
    Decoder decoder{*model, mine};
    double worst = 0, largest = 0;
    for (const Tokens& next : {Tokens{7, 8}, Tokens{9, 10}, Tokens{11, 12}}) {
      const auto logits = decoder.step(next);
      const auto want = model({{"input_ids", at::tensor(next).view({2, 1})}}, {.cache = &theirs}).logits_BTV.to(at::kFloat).contiguous();
      for (std::int64_t i = 0; i < want.numel(); ++i) {
        worst = std::max(worst, static_cast<double>(std::abs(want.const_data_ptr<float>()[i] - logits[static_cast<std::size_t>(i)])));
        largest = std::max(largest, static_cast<double>(std::abs(logits[static_cast<std::size_t>(i)])));
      }
    }
    EXPECT_LT(worst, (dtype == DType::F32 ? 1e-5 : 0.03) * largest);
    EXPECT_EQ(mine.length(), 6);
  }
}

TEST(Generate, ASeedMakesTheSameTokensAgainAndAnotherOnesOthers) {
  auto model = make();
  GenerateOptions options{.max_new_tokens = 20, .do_sample = true, .top_k = 0, .seed = 4};
  const auto first = generate(model, prompts, options).tokens;
  EXPECT_EQ(generate(model, prompts, options).tokens, first);
  options.seed = 5;
  EXPECT_NE(generate(model, prompts, options).tokens, first);
  rank_generator().set_current_seed(1);
  options.seed.reset();
  const auto drawn = generate(model, prompts, options).tokens;
  rank_generator().set_current_seed(1);
  EXPECT_EQ(generate(model, prompts, options).tokens, drawn);
}

/// How often each of 5 tokens is drawn.
std::vector<int> counts_of(GenerateOptions options, int draws = 20'000) {
  options.do_sample = true;
  options.seed = 11;
  detail::Sampler sampler{options};
  std::vector<int> counts(5);
  for (int i = 0; i < draws; ++i) {
    std::vector<float> logits{0.F, std::log(2.F), std::log(4.F), std::log(8.F), std::log(16.F)};  // 1 : 2 : 4 : 8 : 16
    ++counts[static_cast<std::size_t>(sampler.choose(logits, std::vector<std::int64_t>{4}))];
  }
  return counts;
}

TEST(Sampler, DrawsByProbabilityTopKTopPAndTemperature) {
  const auto near = [](const std::vector<int>& counts, const std::vector<double>& want) {
    const auto total = std::accumulate(want.begin(), want.end(), 0.0);
    for (std::size_t i = 0; i < 5; ++i) EXPECT_NEAR(counts[i] / 20'000.0, want[i] / total, 0.015) << i;
  };
  near(counts_of({.top_k = 0}), {1, 2, 4, 8, 16});
  near(counts_of({.top_k = 2}), {0, 0, 0, 8, 16});
  near(counts_of({.top_k = 0, .top_p = 0.75}), {0, 0, 0, 8, 16});  // 16/31 is less than that, 24/31 is more
  near(counts_of({.temperature = 0.5, .top_k = 0}), {1, 4, 16, 64, 256});
  near(counts_of({.top_k = 1}), {0, 0, 0, 0, 1});
  near(counts_of({.top_k = 0, .repetition_penalty = 2}), {1, 2, 4, 8, 4});  // log 16 / 2 = log 4
}

TEST(Generate, RowsEndAtTheirTokenTheirStringOrTheirCallersWish) {
  auto model = make();
  const auto free = generate(model, prompts, {.max_new_tokens = 12}).tokens;
  const auto up_to = [&](std::size_t row, std::size_t count) { return Tokens{free[row].begin(), free[row].begin() + static_cast<std::ptrdiff_t>(count)}; };

  const auto eos = free[0][4];
  const auto first = static_cast<std::size_t>(std::find(free[0].begin(), free[0].end(), eos) - free[0].begin());
  const auto by_token = generate(model, {prompts[0]}, {.max_new_tokens = 12, .eos_token_ids = Tokens{eos}});
  EXPECT_EQ(by_token.tokens[0], up_to(0, first + 1));
  EXPECT_EQ(by_token.reasons[0], Reason::EosToken);

  GenerateOptions by_text{.max_new_tokens = 12};
  by_text.decode = [](std::span<const std::int64_t> tokens) {
    std::string text;
    for (const auto token : tokens) text += "<" + std::to_string(token) + ">";
    return text;
  };
  by_text.stop_strings = {"<" + std::to_string(free[2][3]) + "><" + std::to_string(free[2][4]) + ">"};
  const auto stopped = generate(model, {prompts[2]}, by_text);
  EXPECT_LE(stopped.tokens[0].size(), 5U);
  EXPECT_EQ(stopped.reasons[0], Reason::StopString);

  std::vector<Tokens> streamed(prompts.size());
  GenerateOptions by_caller{.max_new_tokens = 12};
  by_caller.on_token = [&](std::int64_t row, std::int64_t token) {
    streamed[static_cast<std::size_t>(row)].push_back(token);
    return row != 1 || streamed[1].size() < 3;
  };
  const auto called = generate(model, prompts, by_caller);
  EXPECT_EQ(called.tokens, streamed);
  EXPECT_EQ(called.tokens[1], up_to(1, 3));
  EXPECT_EQ(called.reasons[1], Reason::Callback);
  EXPECT_EQ(called.tokens[3], free[3]);  // the others go on
}

TEST(Generate, LeavesTheModelsModesAsTheyWere) {
  auto model = make();
  model->train();
  apply_lora(*model, {.lora_dropout = 0.5});
  for (auto& item : model->named_parameters()) {
    const c10::AutoGradMode no_graph{false};
    if (item.key().ends_with("lora_B.weight")) item.value().normal_(0, 0.3, rank_generator());
  }
  model->children().front()->eval();
  EXPECT_EQ(generate(model, prompts, {.max_new_tokens = 9}).tokens, generate(model, prompts, {.max_new_tokens = 9}).tokens);
  EXPECT_TRUE(model->is_training());
  EXPECT_FALSE(model->children().front()->is_training());
}

TEST(Generate, RefusesWhatItCannotContinue) {
  auto model = make();
  const auto refusal = [&](const std::vector<Tokens>& rows, const GenerateOptions& options) { return test::failure_of([&] { (void)generate(model, rows, options); }); };
  EXPECT_THAT(refusal({{1}, {}}, {.max_new_tokens = 2}), HasSubstr("prompt 1 is empty"));
  EXPECT_THAT(refusal({{1, 61}}, {}), HasSubstr("token 61, outside of the vocabulary of 61"));
  EXPECT_THAT(refusal({{1}}, {.max_new_tokens = 64}), HasSubstr("more than this model's context of 64"));
  EXPECT_THAT(refusal({{1}}, {.temperature = 0}), HasSubstr("temperature"));
  EXPECT_THAT(refusal({{1}}, {.stop_strings = {"x"}}), HasSubstr("need `decode`"));
}

}  // namespace
}  // namespace troupe

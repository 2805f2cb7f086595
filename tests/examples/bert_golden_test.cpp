#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <troupe/bert.hpp>
#include <troupe/tensor_files.hpp>
#include <troupe/wordpiece.hpp>

#include "golden.hpp"

// transformers 5.23.0's numbers for a tiny random BERT and for the real MiniLM (tests/golden/a_*).
// Tolerances are the golden README's.

namespace troupe {
namespace {

using nlohmann::json;

double max_abs(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}
double l2(const at::Tensor& a) { return a.to(at::kDouble).norm().item<double>(); }

/// "batch.input_ids" as batch tensor "input_ids".
Batch batch_of(const TensorMap& io, const std::string& prefix = "") {
  Batch batch;
  for (const auto* const name : {"input_ids", "attention_mask", "token_type_ids", "labels"}) {
    if (const auto found = io.find(prefix + name); found != io.end())
      batch.set(name, found->second);
  }
  return batch;
}

class bert_golden : public ::testing::Test {
 protected:
  const std::filesystem::path folder_ = test::golden("a_tiny_bert");
  const TensorMap io_ = read_safetensors(folder_ / "io.safetensors");
  const json golden_ = test::read_json(folder_ / "golden.json");
  BertForSequenceClassification model_ = BertForSequenceClassification::from_pretrained(folder_);
};

TEST_F(bert_golden, EveryHiddenStateAndTheLogitsAreTheReferences) {
  model_->eval();
  const auto out = model_(batch_of(io_), true);
  const double tolerance = golden_.at("tolerance").at("logits_abs");
  for (std::size_t i = 0; io_.contains("hidden_states." + std::to_string(i)); ++i) {
    EXPECT_LT(max_abs(out.hidden_states.at(i), io_.at("hidden_states." + std::to_string(i))),
              tolerance)
        << i;
  }
  EXPECT_LT(max_abs(out.last_hidden_state_BTD, io_.at("last_hidden_state")), tolerance);
  EXPECT_LT(max_abs(out.pooler_output_BD, io_.at("pooler_output")), tolerance);
  EXPECT_LT(max_abs(out.logits_BC, io_.at("logits")), tolerance);
  EXPECT_NEAR(out.loss.item<double>(), golden_.at("loss").get<double>(),
              golden_.at("tolerance").at("loss_abs").get<double>());
}

TEST_F(bert_golden, WithoutTokenTypesTheFirstTypeIsTaken) {
  model_->eval();
  const auto out =
      model_({{"input_ids", io_.at("input_ids")}, {"attention_mask", io_.at("attention_mask")}});
  EXPECT_FALSE(out.loss.defined());
  const auto expected = golden_.at("logits_without_token_type_ids");
  for (std::size_t b = 0; b < expected.size(); ++b) {
    for (std::size_t c = 0; c < expected[b].size(); ++c) {
      EXPECT_NEAR(
          out.logits_BC[static_cast<std::int64_t>(b)][static_cast<std::int64_t>(c)].item<double>(),
          expected[b][c].get<double>(), 2e-5);
    }
  }
}

TEST_F(bert_golden, EveryGradientIsTheReferences) {
  model_->eval();
  model_(batch_of(io_)).loss.backward();
  const auto expected = read_safetensors(folder_ / "grads.safetensors");
  std::size_t seen = 0;
  for (const auto& item : model_->named_parameters()) {
    ASSERT_TRUE(expected.contains(item.key())) << item.key();
    const auto& want = expected.at(item.key());
    const auto off = l2(item.value().grad() - want);
    // The key bias' true gradient is 0: what is stored is rounding noise.
    const bool noise = item.key().ends_with("attention.self.key.bias");
    EXPECT_LT(noise ? l2(item.value().grad()) : off / l2(want), noise ? 1e-5 : 1e-4) << item.key();
    ++seen;
  }
  EXPECT_EQ(seen, expected.size());
}

class minilm_golden : public ::testing::Test {
 protected:
  const std::filesystem::path folder_ = test::golden("a_minilm");
  const TensorMap io_ = read_safetensors(folder_ / "io.safetensors");
  const json golden_ = test::read_json(folder_ / "golden.json");
  std::vector<std::string> missing_;
  BertForSequenceClassification model_ =
      BertForSequenceClassification::from_pretrained(test::minilm(), 2, &missing_);
};

TEST_F(minilm_golden, MeanPooledEmbeddingsAreTheReferences) {
  const c10::AutoGradMode no_grad{false};
  model_->eval();
  const auto out = model_(batch_of(io_, "emb."));
  const auto mask = io_.at("emb.attention_mask").to(at::kFloat).unsqueeze(-1);
  const auto pooled = (out.last_hidden_state_BTD * mask).sum(1) / mask.sum(1);
  EXPECT_LT(max_abs(pooled, io_.at("emb.mean_pooled")), 5e-6);
  EXPECT_LT(max_abs(out.last_hidden_state_BTD.select(1, 0), io_.at("emb.cls_last_hidden")), 5e-6);
  EXPECT_LT(max_abs(out.pooler_output_BD, io_.at("emb.pooler_output")), 5e-6);
}

TEST_F(minilm_golden, TheTokenizerGivesTheReferencesInputs) {
  const auto words = WordPiece::from_pretrained(test::minilm());
  const auto expect = [&](const WordPiece::Encoding& got, const std::string& prefix,
                          std::int64_t row) {
    const auto ids = io_.at(prefix + "input_ids")[row];
    const auto types = io_.at(prefix + "token_type_ids")[row];
    auto padded = got;
    words.pad(padded, static_cast<std::size_t>(ids.numel()));
    for (std::int64_t t = 0; t < ids.numel(); ++t) {
      EXPECT_EQ(padded.ids[static_cast<std::size_t>(t)], ids[t].item<std::int64_t>())
          << prefix << row << " " << t;
      EXPECT_EQ(padded.type_ids[static_cast<std::size_t>(t)], types[t].item<std::int64_t>())
          << prefix << row << " " << t;
    }
  };
  for (std::size_t i = 0; i < golden_.at("sentences").size(); ++i) {
    expect(words.encode(golden_["sentences"][i].get<std::string>()), "emb.",
           static_cast<std::int64_t>(i));
  }
  for (std::size_t i = 0; i < golden_.at("pairs").size(); ++i) {
    const auto& pair = golden_["pairs"][i];
    expect(words.encode(pair[0].get<std::string>(), pair[1].get<std::string>(), 64), "cls.",
           static_cast<std::int64_t>(i));
  }
}

TEST_F(minilm_golden, ClassificationLossAndGradientNormsAreTheReferences) {
  EXPECT_EQ(missing_, (std::vector<std::string>{"classifier.weight", "classifier.bias"}));
  const auto head = read_safetensors(folder_ / "head.safetensors");
  auto parameters = model_->named_parameters();
  {
    const c10::AutoGradMode no_grad{false};
    for (const auto& [name, value] : head) parameters[name].copy_(value);
  }
  model_->eval();
  const auto out = model_(batch_of(io_, "cls."));
  EXPECT_LT(max_abs(out.logits_BC, io_.at("cls.logits")), 5e-5);
  EXPECT_NEAR(out.loss.item<double>(), golden_.at("loss").get<double>(), 2e-5);
  out.loss.backward();
  double squares = 0;
  for (const auto& item : parameters) {
    const auto got = l2(item.value().grad());
    const double want = golden_.at("grad").at(item.key()).at("l2");
    const bool noise = item.key().ends_with("attention.self.key.bias");
    EXPECT_NEAR(got, want, noise ? 1e-5 : 5e-4 * want) << item.key();
    squares += got * got;
  }
  const double total = golden_.at("total_grad_norm");
  EXPECT_NEAR(std::sqrt(squares), total, 5e-4 * total);
}

}  // namespace
}  // namespace troupe

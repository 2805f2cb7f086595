#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>
#include <unistd.h>

#include <thread>
#include <troupe/bert.hpp>
#include <troupe/random.hpp>
#include <troupe/tensor_files.hpp>
#include <troupe/unit.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::failure_of;

struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "bert_XXXXXX").string();
    return fs::path{::mkdtemp(name.data())};
  }();
  ~Scratch() { fs::remove_all(path); }
};

BertConfig tiny() {
  BertConfig c;
  c.vocab_size = 50;
  c.hidden_size = 16;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 4;
  c.intermediate_size = 32;
  c.max_position_embeddings = 20;
  return c;
}

Batch batch(std::int64_t b = 3, std::int64_t t = 7) {
  const auto ids = at::randint(1, 50, {b, t}, at::kLong);
  auto mask = at::ones({b, t}, at::kLong);
  mask[0].narrow(0, t - 2, 2).zero_();
  return {{"input_ids", ids}, {"attention_mask", mask}, {"labels", at::full({b}, 1, at::kLong)}};
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kFloat) - b.to(at::kFloat)).abs().max().item<double>();
}

TEST(bert, ADirectoryReadsBackAsItWasWritten) {
  const Scratch scratch;
  BertForSequenceClassification model{tiny()};
  model->eval();
  model->save_pretrained(scratch.path);
  std::vector<std::string> missing{"to be cleared"};
  auto read = BertForSequenceClassification::from_pretrained(scratch.path, 0, &missing);
  read->eval();
  EXPECT_TRUE(missing.empty());
  const auto input = batch();
  EXPECT_TRUE(read(input).logits_BC.equal(model(input).logits_BC));
}

struct SeenHooks : UnitHooks {
  explicit SeenHooks(std::vector<std::string>& log, std::string name)
      : log_(log), name_(std::move(name)) {}
  at::Tensor on_input(const at::Tensor& input) override { return input; }
  void pre_forward() override { log_.push_back("before " + name_); }
  void on_output(const at::Tensor& tensor) override {
    log_.push_back(name_ + " gave " + c10::str(tensor.sizes()));
  }
  void post_forward() override { log_.push_back("after " + name_); }
  std::vector<std::string>& log_;
  std::string name_;
};

TEST(bert, IsAUnitAndSoIsEachLayer) {
  BertForSequenceClassification model{tiny()};
  std::vector<std::string> log;
  for (const auto& item : model->named_modules()) {
    if (auto* const unit = dynamic_cast<Unit*>(item.value().get())) {
      unit->set_unit_hooks(std::make_shared<SeenHooks>(log, item.key()));
    }
  }
  (void)model(batch());
  EXPECT_EQ(log,
            (std::vector<std::string>{
                "before ", "before bert.encoder.layer.0", "bert.encoder.layer.0 gave [3, 7, 16]",
                "after bert.encoder.layer.0", "before bert.encoder.layer.1",
                "bert.encoder.layer.1 gave [3, 7, 16]", "after bert.encoder.layer.1", " gave []",
                " gave [3, 2]", " gave [3, 7, 16]", " gave [3, 16]", "after "}));
}

// What an engine does that shards parameters: takes their data away and gives it back elsewhere.
TEST(bert, SeesTheDataThatAnEngineSets) {
  BertForSequenceClassification model{tiny()};
  model->eval();
  const auto input = batch();
  const auto expected = model(input).logits_BC;
  std::vector<at::Tensor> kept;
  for (auto& parameter : model->parameters()) {
    kept.push_back(parameter.detach().clone());
    parameter.set_data(at::empty({0}));
  }
  EXPECT_ANY_THROW((void)model(input));
  std::size_t i = 0;
  for (auto& parameter : model->parameters()) parameter.set_data(kept[i++]);
  EXPECT_TRUE(model(input).logits_BC.equal(expected));
  kept.clear();
  for (auto& parameter : model->parameters()) parameter.set_data(parameter.detach() * 0);
  EXPECT_EQ(model(input).logits_BC.abs().max().item<double>(), 0);
}

TEST(bert, GivesTheSameGradientsWithActivationCheckpointing) {
  BertForSequenceClassification model{tiny()};
  const auto input = batch();
  const auto gradients = [&] {
    model->zero_grad();
    set_seed(2);
    model(input).loss.backward();
    std::vector<at::Tensor> result;
    for (const auto& parameter : model->parameters()) result.push_back(parameter.grad());
    return result;
  };
  const auto expect_same = [](const auto& ours, const auto& expected) {
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(ours[i].equal(expected[i])) << i;
  };
  const auto plain = gradients();
  EXPECT_EQ(set_activation_checkpointing(*model, true), 2);
  expect_same(gradients(), plain);
  model->set_activation_checkpointing(true);  // the layers' checkpoints in the model's own
  expect_same(gradients(), plain);
}

TEST(bert, NewWeightsAreNormalAndTheirRankDecidesThem) {
  set_seed(7);
  BertForSequenceClassification first{tiny()};
  BertForSequenceClassification second{tiny()};
  set_seed(7);
  BertForSequenceClassification again{tiny()};
  const auto a = first->named_parameters();
  const auto name = "bert.embeddings.word_embeddings.weight";
  EXPECT_TRUE(a[name].equal(again->named_parameters()[name]));
  EXPECT_FALSE(a[name].equal(second->named_parameters()[name]));
  EXPECT_NEAR(a[name].std().item<double>(), 0.02, 0.002);
  EXPECT_EQ(a[name][0].abs().sum().item<double>(), 0);
  EXPECT_EQ(a["bert.embeddings.LayerNorm.weight"].sum().item<double>(), 16);
  EXPECT_EQ(a["classifier.bias"].abs().sum().item<double>(), 0);
}

TEST(bert, DropoutComesFromTheRanksGenerator) {
  BertForSequenceClassification model{tiny()};
  const auto input = batch();
  set_seed(1);
  const auto first = model(input).logits_BC;
  EXPECT_GT(difference(model(input).logits_BC, first), 0);
  set_seed(1);
  EXPECT_EQ(difference(model(input).logits_BC, first), 0);
  // Another thread's draws change nothing here.
  set_seed(1);
  std::thread{[&] { (void)model(input); }}.join();
  EXPECT_EQ(difference(model(input).logits_BC, first), 0);
}

TEST(bert, TheUnfusedAttentionGivesTheFusedNumbers) {
  auto config = tiny();
  config.hidden_dropout_prob = 0;
  config.attention_probs_dropout_prob = 1e-9;  // takes the path with a mask, drops nothing
  BertForSequenceClassification model{config};
  const auto input = batch();
  const auto unfused = model(input).last_hidden_state_BTD;
  model->eval();
  EXPECT_LT(difference(model(input).last_hidden_state_BTD, unfused), 1e-5);
}

TEST(bert, PaddingDoesNotChangeWhatIsReal) {
  BertForSequenceClassification model{tiny()};
  model->eval();
  const auto ids = at::randint(1, 50, {1, 5}, at::kLong);
  const auto alone =
      model({{"input_ids", ids}, {"attention_mask", at::ones({1, 5}, at::kLong)}}).logits_BC;
  auto padded = at::full({1, 9}, 3, at::kLong);
  auto mask = at::full({1, 9}, 0, at::kLong);
  padded.narrow(1, 0, 5).copy_(ids);
  mask.narrow(1, 0, 5).fill_(1);
  EXPECT_LT(difference(model({{"input_ids", padded}, {"attention_mask", mask}}).logits_BC, alone),
            1e-5);
}

TEST(bert, RunsUnderBf16Autocast) {
  for (const double p : {0.0, 0.1}) {
    auto config = tiny();
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = p;
    BertForSequenceClassification model{config};
    const auto input = batch();
    set_seed(3);
    const auto exact = model(input);
    set_seed(3);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    const auto half = model(input);
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::clear_cache();
    EXPECT_EQ(half.logits_BC.scalar_type(), at::kBFloat16);
    EXPECT_EQ(half.loss.scalar_type(), at::kFloat);
    if (p == 0) {
      EXPECT_LT(difference(half.last_hidden_state_BTD, exact.last_hidden_state_BTD), 0.1);
    }
    half.loss.backward();
    for (const auto& item : model->named_parameters())
      EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
  }
}

TEST(bert, OldNamesAndHalfPrecisionFilesAreTaken) {
  const Scratch scratch;
  BertForSequenceClassification model{tiny()};
  model->save_pretrained(scratch.path);
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& [key, tensor] : read_safetensors(scratch.path / "model.safetensors")) {
    auto name = key;
    if (name.starts_with("bert.")) name.erase(0, 5);
    if (name.ends_with("LayerNorm.weight")) name.replace(name.size() - 6, 6, "gamma");
    if (name.ends_with("LayerNorm.bias")) name.replace(name.size() - 4, 4, "beta");
    if (!name.starts_with("classifier") && !name.starts_with("pooler"))
      tensors.emplace_back(name, tensor.to(at::kHalf));
  }
  tensors.emplace_back("cls.predictions.bias", at::ones({50}));
  write_safetensors(scratch.path / "model.safetensors", tensors);
  std::vector<std::string> missing;
  auto read = BertForSequenceClassification::from_pretrained(scratch.path, 5, &missing);
  EXPECT_EQ(missing.size(), 4U);
  EXPECT_EQ(read(batch()).logits_BC.size(1), 5);
  EXPECT_EQ(read->named_parameters()["bert.encoder.layer.1.output.dense.weight"].scalar_type(),
            at::kFloat);
}

TEST(bert, FilesThatDoNotFitAreNamed) {
  const Scratch scratch;
  const auto load = [&] {
    return failure_of([&] { (void)BertForSequenceClassification::from_pretrained(scratch.path); });
  };
  EXPECT_TRUE(load().starts_with("FileNotFound")) << load();
  BertForSequenceClassification { tiny() } -> save_pretrained(scratch.path);
  auto tensors = read_safetensors(scratch.path / "model.safetensors");
  const std::string name = "bert.encoder.layer.1.output.dense.weight";
  tensors[name] = at::ones({3, 4});
  write_safetensors(scratch.path / "model.safetensors", {tensors.begin(), tensors.end()});
  EXPECT_NE(load().find("tensor '" + name + "' has shape [3, 4], config.json wants [16, 32]"),
            std::string::npos)
      << load();
  tensors.erase(name);
  write_safetensors(scratch.path / "model.safetensors", {tensors.begin(), tensors.end()});
  EXPECT_NE(load().find("lacks the tensor '" + name + "'"), std::string::npos) << load();
  fs::remove(scratch.path / "model.safetensors");
  EXPECT_TRUE(load().starts_with("FileNotFound")) << load();
  for (const auto* const bad : {"[]", R"({"hidden_size":"x"})", R"({"hidden_size":-1})",
                                R"({"num_attention_heads":5})", R"({"hidden_act":"silu"})",
                                R"({"model_type":"llama"})", R"({"hidden_dropout_prob":1.5})"}) {
    std::ofstream{scratch.path / "config.json"} << bad;
    EXPECT_NE(load().find("config.json"), std::string::npos) << bad << ": " << load();
  }
}

TEST(bert, BatchesThatDoNotFitAreNamed) {
  BertForSequenceClassification model{tiny()};
  const auto ids = at::ones({2, 30}, at::kLong);
  EXPECT_NE(failure_of([&] {
              (void)model({{"input_ids", ids}, {"attention_mask", ids}});
            }).find("30 tokens"),
            std::string::npos);
  EXPECT_NE(failure_of([&] {
              (void)model({{"input_ids", ids}, {"attention_mask", ids[0]}});
            }).find("'attention_mask'"),
            std::string::npos);
  EXPECT_NE(failure_of([&] {
              (void)model({{"attention_mask", ids}});
            }).find("'input_ids'"),
            std::string::npos);
}

}  // namespace
}  // namespace troupe

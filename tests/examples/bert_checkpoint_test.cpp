// A sharded run's checkpoint is a Hugging Face directory: transformers opens it as it is.
#include "fake_context.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/bert.hpp>
#include <troupe/tensor_files.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace troupe {
namespace {

namespace fs = std::filesystem;

struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "bert_checkpoint_XXXXXX").string();
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

Batch batch() {
  const auto ids = at::randint(1, 50, {3, 7}, rank_generator(), at::TensorOptions().dtype(at::kLong));
  return {{"input_ids", ids}, {"attention_mask", at::ones({3, 7}, at::kLong)}, {"labels", at::full({3}, 1, at::kLong)}};
}

/// Trains two updates on three ranks, saves, and writes what transformers must find: every tensor, an input and its logits.
void save(const ShardingOptions& sharding, const fs::path& root) {
  test::run_ranks(3, [&](TrainContext& context) {
    set_seed(5);
    Accelerator accelerator{context, {.sharding = sharding, .checkpoint = {.max_shard_size = 8000}}};
    BertForSequenceClassification model{tiny()};
    AdamW optimizer{model->parameters(), {.lr = 1e-3}};
    accelerator.prepare(model, optimizer);
    for (int i = 0; i < 2; ++i) {
      accelerator.backward(model(batch()).loss);
      optimizer.step();
      optimizer.zero_grad();
    }
    auto hook = accelerator.register_save_state_pre_hook([&](const auto&, const fs::path& into) {
      if (accelerator.is_main_process()) model->config().save(into / "config.json");
    });
    accelerator.save_state(root / "checkpoint");
    hook.remove();
    model->eval();
    const at::NoGradGuard no_grad;
    const auto input = batch();
    const auto logits = model(input).logits_BC;
    auto expected = accelerator.get_state_dict(model);
    if (!accelerator.is_main_process()) return;
    expected.emplace_back("the.ids", input["input_ids"]);
    expected.emplace_back("the.logits", logits);
    write_safetensors(root / "expected.safetensors", expected);
  });
}

constexpr const char* check = R"(
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
root = Path(sys.argv[1])
expected = load_file(root / "expected.safetensors")
ids, logits = expected.pop("the.ids"), expected.pop("the.logits")
model, info = AutoModelForSequenceClassification.from_pretrained(root / "checkpoint", output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
state = model.state_dict()
for name, tensor in expected.items():
    assert torch.equal(state[name], tensor), name
assert set(expected) <= set(state)
with torch.no_grad():
    ours = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
assert torch.allclose(ours, logits, atol=1e-5), (ours, logits)
print("equal:", len(expected), "tensors")
)";

/// Python with transformers and safetensors, or "": TROUPE_TEST_PYTHON, else python3.
std::string python() {
  const char* given = std::getenv("TROUPE_TEST_PYTHON");
  const std::string program = given ? given : "python3";
  return std::system((program + " -c 'import torch, transformers, safetensors' > /dev/null 2>&1").c_str()) == 0 ? program : "";
}

TEST(bert, TransformersOpensACheckpointOfEveryStrategy) {
  const auto program = python();
  if (program.empty()) GTEST_SKIP() << "no Python with torch, transformers and safetensors; TROUPE_TEST_PYTHON may name one (bench/setup_peers makes one)";
  for (const auto strategy : {ShardingStrategy::Replicate, ShardingStrategy::ShardGradients, ShardingStrategy::ShardParameters}) {
    const Scratch scratch;
    save({.strategy = strategy}, scratch.path);
    ASSERT_TRUE(fs::exists(scratch.path / "checkpoint" / "model.safetensors.index.json"));
    std::ofstream{scratch.path / "check.py"} << check;
    EXPECT_EQ(std::system((program + " " + (scratch.path / "check.py").string() + " " + scratch.path.string()).c_str()), 0);
  }
}

TEST(bert, ReadsTheCheckpointOfAShardedRunItself) {
  const Scratch scratch;
  save({.strategy = ShardingStrategy::ShardParameters}, scratch.path);
  auto model = BertForSequenceClassification::from_pretrained(scratch.path / "checkpoint");
  model->eval();
  const auto expected = read_safetensors(scratch.path / "expected.safetensors");
  const at::NoGradGuard no_grad;
  const auto ids = expected.at("the.ids");
  const auto logits = model(Batch{{"input_ids", ids}, {"attention_mask", at::ones(ids.sizes(), at::kLong)}}).logits_BC;
  EXPECT_TRUE(logits.allclose(expected.at("the.logits"), 1e-5, 1e-6));
}

}  // namespace
}  // namespace troupe

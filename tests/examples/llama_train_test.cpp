// Training of a small Llama, whole or with adapters, under every strategy.
#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/errors.hpp>
#include <troupe/memory_account.hpp>
#include <troupe/parameter_source.hpp>
#include <troupe/random.hpp>
#include <troupe/tensor_files.hpp>

#include "fake_context.hpp"
#include "golden.hpp"
#include "llama_run.hpp"

namespace troupe {
namespace {

using ::testing::HasSubstr;
const bool counting_installed = (CountTensors::install(), true);  // before anything else, as in a main
using test::LlamaCurve;
using test::LlamaRun;
using test::train_llama;

ShardingOptions with(ShardingStrategy strategy) {
  ShardingOptions options;
  options.strategy = strategy;
  return options;
}
const auto zero3 = with(ShardingStrategy::ShardParameters);

void expect_reference(const LlamaCurve& curve, bool lora, double loss_tolerance = 1e-5, double norm_tolerance = 1e-4) {
  const auto golden = test::read_json(test::golden("d_llama") / (lora ? "curve_lora.json" : "curve_full.json"));
  const auto& steps = golden.at("steps");
  ASSERT_EQ(curve.losses.size(), steps.size());
  for (std::size_t s = 0; s < steps.size(); ++s) {
    EXPECT_NEAR(curve.losses[s], steps[s].at("loss").get<double>(), loss_tolerance) << s;
    const auto norm = steps[s].at("grad_norm_before_clip").get<double>();
    EXPECT_NEAR(curve.norms[s], norm, norm_tolerance * norm) << s;
    EXPECT_NEAR(curve.lrs[s], steps[s].at("lr").get<double>(), 1e-12) << s;
  }
  if (lora) {
    EXPECT_EQ(curve.num_trained, golden.at("trainable_parameters").get<std::int64_t>());
  }
  if (loss_tolerance > 1e-5) return;
  for (const auto& [name, tensor] : curve.trained) {
    for (const auto& [key, want] : golden.at("final_param").items()) {
      if (key.find(name.substr(0, name.size() - 7)) == std::string::npos) continue;  // PEFT's names have more in them
      EXPECT_NEAR(tensor.to(at::kDouble).norm().item<double>(), want.at("l2").get<double>(), 1e-5 * want.at("l2").get<double>()) << key;
    }
  }
}

void expect_same(const LlamaCurve& a, const LlamaCurve& b) {
  EXPECT_EQ(a.losses, b.losses);
  ASSERT_EQ(a.trained.size(), b.trained.size());
  for (const auto& [name, tensor] : a.trained) EXPECT_TRUE(tensor.equal(b.trained.at(name))) << name;
}

/// lora, ranks, strategy
using Case = std::tuple<bool, int, ShardingStrategy>;
struct LlamaCurves : testing::TestWithParam<Case> {};

TEST_P(LlamaCurves, FollowTheReference) {
  const auto [lora, ranks, strategy] = GetParam();
  LlamaRun run{.lora = lora, .sharding = with(strategy)};
  expect_reference(train_llama(ranks, run), lora);
}

INSTANTIATE_TEST_SUITE_P(All, LlamaCurves,
                         testing::Combine(testing::Bool(), testing::Values(1, 2, 4),
                                          testing::Values(ShardingStrategy::Replicate, ShardingStrategy::ShardOptimizer, ShardingStrategy::ShardGradients,
                                                          ShardingStrategy::ShardParameters)));

TEST(LlamaTrain, RanksEqualOneProcessThatAccumulatesBitForBit) {
  for (const bool lora : {false, true}) {
    for (const int ranks : {2, 4}) {
      const auto alone = train_llama(1, {.lora = lora, .clip = false, .micro_batches = ranks});
      const auto together = train_llama(ranks, {.lora = lora, .sharding = zero3, .clip = false});
      ASSERT_EQ(alone.trained.size(), together.trained.size());
      for (const auto& [name, tensor] : alone.trained) EXPECT_TRUE(tensor.equal(together.trained.at(name))) << name << " " << ranks << (lora ? " lora" : "");
    }
  }
}

TEST(LlamaTrain, DeferredParametersAndActivationCheckpointingChangeNoBit) {
  for (const bool lora : {false, true}) {
    const auto plain = train_llama(2, {.lora = lora, .sharding = zero3});
    auto other = zero3;
    other.activation_checkpointing = true;
    expect_same(plain, train_llama(2, {.lora = lora, .sharding = other, .deferred = true}));
    expect_same(train_llama(2, {.lora = lora}), train_llama(2, {.lora = lora, .deferred = true}));
    expect_same(train_llama(2, {.lora = lora, .sharding = with(ShardingStrategy::ShardOptimizer)}),
                train_llama(2, {.lora = lora, .sharding = with(ShardingStrategy::ShardOptimizer), .deferred = true}));
  }
}

TEST(LlamaTrain, OffloadToHostAndDiskChangesNoBit) {
  const auto folder = test::fresh_directory("llama_offload");
  for (const bool lora : {false, true}) {
    const auto plain = train_llama(2, {.lora = lora, .sharding = zero3});
    auto host = zero3, disk = zero3;
    host.offload_optimizer.place = Offload::Place::Host;
    disk.offload_optimizer.place = disk.offload_params.place = Offload::Place::Disk;
    disk.offload_optimizer.path = disk.offload_params.path = folder;
    expect_same(plain, train_llama(2, {.lora = lora, .sharding = host}));
    expect_same(plain, train_llama(2, {.lora = lora, .sharding = disk, .deferred = true}));
  }
  std::filesystem::remove_all(folder);
}

TEST(LlamaTrain, InBf16AndFp16TheCurveStaysNearTheReference) {
  for (const auto precision : {Precision::BF16, Precision::FP16}) {
    for (const bool lora : {false, true}) {
      for (const auto strategy : {ShardingStrategy::Replicate, ShardingStrategy::ShardOptimizer, ShardingStrategy::ShardParameters}) {
        expect_reference(train_llama(2, {.lora = lora, .sharding = with(strategy), .precision = precision}), lora, 0.03, 0.15);
      }
    }
  }
}

TEST(LlamaTrain, ShardedInGroupsTheCurveIsTheReferences) {
  auto hybrid = zero3;
  hybrid.shard_group_size = 2;
  for (const bool lora : {false, true}) expect_reference(train_llama(4, {.lora = lora, .sharding = hybrid}), lora);
}

class LlamaResume : public testing::Test {
 protected:
  const std::filesystem::path folder_ = test::fresh_directory("llama_resume");
  void TearDown() override { std::filesystem::remove_all(folder_); }
};

TEST_F(LlamaResume, GoesOnBitForBitWhereItStopped) {
  for (const bool lora : {false, true}) {
    const LlamaRun whole{.lora = lora, .sharding = zero3, .dropout = 0.2};
    const auto curve = train_llama(2, whole);
    auto first = whole, second = whole;
    first.save_to = second.load_from = folder_ / (lora ? "lora" : "full");
    first.save_after = first.stop_after = 9;
    (void)train_llama(2, first);
    const auto rest = train_llama(2, second);
    EXPECT_EQ(rest.losses, (std::vector<double>{curve.losses.begin() + 9, curve.losses.end()}));
    for (const auto& [name, tensor] : curve.trained) EXPECT_TRUE(tensor.equal(rest.trained.at(name))) << name;
  }
}

TEST_F(LlamaResume, ACheckpointHoldsAdaptersAndNamesTheirBase) {
  const auto saved = folder_ / "adapters";
  (void)train_llama(2, {.lora = true, .sharding = zero3, .save_to = saved, .save_after = 2, .stop_after = 2});
  const auto tensors = read_model_directory(saved);
  EXPECT_EQ(tensors.size(), 16U);
  for (const auto& [name, tensor] : tensors) EXPECT_THAT(name, HasSubstr(".lora_"));

  auto other = LlamaForCausalLM::from_pretrained(test::golden("d_llama") / "model");
  {
    const c10::AutoGradMode no_graph{false};
    other->named_parameters()["model.norm.weight"].mul_(2);
  }
  other->save_pretrained(folder_ / "other");
  EXPECT_THAT(test::failure_of([&] { (void)train_llama(2, {.lora = true, .sharding = zero3, .load_from = saved, .model = folder_ / "other"}); }),
              HasSubstr("over a frozen base with fingerprint"));
  EXPECT_THAT(test::failure_of([&] { (void)train_llama(2, {.sharding = zero3, .load_from = saved}); }), HasSubstr("has no frozen base"));
  EXPECT_EQ(test::failure_of([&] { (void)train_llama(1, {.lora = true, .load_from = saved}); }), "nothing was thrown");
}

std::int64_t status_kb(const char* key) {
  std::ifstream in{"/proc/self/status"};
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(key)) return std::stoll(line.substr(line.find(':') + 1));
  }
  return 0;
}

TEST_F(LlamaResume, NoRankEverHoldsAWholeModelOfDeferredParameters) {
  LlamaConfig config;
  config.vocab_size = 8000;
  config.hidden_size = 512;
  config.intermediate_size = 1536;
  config.num_hidden_layers = 4;
  config.num_attention_heads = 8;
  config.max_position_embeddings = 64;
  const auto model_kb = config.num_parameters() * 4 / 1024;  // 86 MB
  const auto largest_kb = config.vocab_size * config.hidden_size * 4 / 1024;
  {
    LlamaForCausalLM{config}->save_pretrained(folder_ / "large");
  }
  (void)train_llama(4, {.sharding = zero3, .deferred = true, .stop_after = 1});  // code that is read from disk counts, too
  std::ofstream{"/proc/self/clear_refs"} << 5;  // the peak begins anew
  const auto before = status_kb("VmRSS");
  test::run_ranks(4, [&](TrainContext& context) {
    Accelerator accelerator{context, {.sharding = zero3}};
    const auto memory = accelerator.memory();
    const CountTensors counting{memory};
    auto model = LlamaForCausalLM::from_pretrained(folder_ / "large", {.deferred = true});
    accelerator.prepare(model);
    const auto peak_kb = memory.total().peak / 1024;
    EXPECT_GT(peak_kb, model_kb / 5);
    EXPECT_LT(peak_kb, model_kb / 4 + largest_kb + 1024) << memory.table();
    context.barrier();
  });
  const auto peak = status_kb("VmHWM") - before;  // of four ranks, who hold a quarter each, and whatever malloc and the kernel keep for them
  EXPECT_GT(peak, model_kb / 2);
  EXPECT_LT(peak, 2 * model_kb);
}

}  // namespace
}  // namespace troupe

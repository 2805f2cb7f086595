#include "../backends/resume_run.hpp"
#include "../backends/weights_digest.hpp"
#include "../core/dataset/numbers_source.hpp"
#include "scenario.hpp"

#include <ATen/ops/remainder.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <troupe/data_iterator.hpp>
#include <troupe/torch_trainer.hpp>

// Training from a streamed data set under injected faults: what it ends with must be, bit for bit, what it ends with undisturbed.

namespace troupe {

Session* session = nullptr;

namespace {

using testing::HasSubstr;

Dataset make_ids(const Config& config) {
  const auto rows = config.get<std::int64_t>("rows");
  return Dataset{test::numbers({rows / 3, rows / 4, rows - rows / 3 - rows / 4})}.randomize_block_order(5).map_batches(
      [](const std::shared_ptr<arrow::RecordBatch>& batch) { return batch; }, {.name = "pass"});
}

struct Counter {
  int& value;
  [[nodiscard]] std::string state_dict() const { return std::to_string(value); }
  void load_state_dict(const std::string& bytes) { value = std::stoi(bytes); }
};

Batch with_labels(const BatchColumns& columns) {
  const auto ids_B = columns.tensor("id");
  return {{"id", at::remainder(ids_B, 11)}, {"label", at::remainder(ids_B, 3)}};
}

/// Two epochs and a half; the last report has the weights' digest and where the attempt went on from.
void train(TrainContext& context, const Config& config) {
  auto c = config.get<std::string>("strategy") == "zero3" ? test::sharded(ShardingStrategy::ShardParameters) : test::ResumeCase{};
  c.checkpoint.async = true;
  const int updates = config.get<int>("updates"), checkpoint_every = config.get<int>("checkpoint_every");
  test::Training training{context, c};
  Counter counter{training.num_updates};
  training.accelerator.register_for_checkpointing(counter);
  const auto ids = context.dataset("ids");
  if (const auto copy = context.get_checkpoint()) training.accelerator.load_state(copy->path());
  const int began = training.num_updates;
  while (training.num_updates < updates) {
    auto range = ids.iter_batches({.batch_size = 4, .prefetch_batches = 2, .local_shuffle_buffer_size = 12, .collate_fn = with_labels});
    for (const auto& batch : range) {
      training.step(batch);
      if (checkpoint_every > 0 && training.num_updates % checkpoint_every == 0) context.report({{"update", training.num_updates}}, training.accelerator.checkpoint());
      if (training.num_updates == updates) break;
    }
  }
  const auto digest = test::digest_of(training);
  (void)training.accelerator.wait_for_saves();
  if (context.world_rank() == 0) context.report({{"digest", digest}, {"began", began}, {"updates", training.num_updates}});
}

class FaultStreaming : public testing::Test {
 protected:
  TempDir directory_;
  TrainerOptions options_;
  nlohmann::ordered_json settings_;
  int runs_ = 0;

  void SetUp() override {
    options_.scaling.num_workers = 2;
    options_.scaling.placement = Placement::Processes;
    options_.run.failure.max_failures = 5;
    options_.run.progress = false;
    options_.run.storage_path = directory_.path();
    settings_["strategy"] = "replicate";
    settings_["rows"] = 101;
    settings_["updates"] = 32;  // an epoch has 13
    settings_["checkpoint_every"] = 10;
  }
  Result fit(const std::string& chaos) {
    options_.run.name = "run_" + std::to_string(++runs_);
    options_.run.chaos = chaos;
    return TorchTrainer{*session, "train", Config(settings_), options_}.fit();
  }
  static std::string digest(const Result& result) {
    const auto* found = result.metrics.find("digest");
    return found ? std::get<std::string>(*found) : "no digest: " + (result.error ? result.error->message : std::string{});
  }
  void survives(const std::string& kinds, const std::string& strategy, int seeds) {
    settings_["strategy"] = strategy;
    const auto expected = digest(fit(""));
    for (int seed = 1; seed <= seeds; ++seed) {
      const auto plan = "rank=any step=2..30 kind=" + kinds + "; seed=" + std::to_string(seed);
      const auto result = fit(plan);
      EXPECT_EQ(digest(result), expected) << strategy << ", TROUPE_CHAOS='" << plan << "'";
      EXPECT_GE(result.history.back().attempt, 2u) << plan << ": nothing has struck";
    }
  }
};

TEST_F(FaultStreaming, EndsWithTheSameWeightsAfterAKill) { survives("kill", "replicate", 3); }
TEST_F(FaultStreaming, EndsWithTheSameWeightsAfterACrashWithShardedParameters) { survives("segv|exit:3", "zero3", 2); }
TEST_F(FaultStreaming, EndsWithTheSameWeightsOnThreads) {
  options_.scaling.placement = Placement::Threads;
  survives("throw", "replicate", 2);
}

TEST_F(FaultStreaming, LosesAtMostOneStep) {
  const auto result = fit("rank=1 step=20 kind=kill");
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_GE(result.metrics.number("began"), 19);
}

TEST_F(FaultStreaming, GoesOnFromACheckpointInTheMiddleOfAnEpoch) {
  options_.run.failure.snapshot_every = 0;
  const auto expected = digest(fit(""));
  const auto result = fit("rank=0 step=30 kind=kill");
  EXPECT_EQ(digest(result), expected);
  EXPECT_THAT(result.metrics.number("began"), testing::AnyOf(10, 20));
}

TEST_F(FaultStreaming, NamesADataSetThatIsNotThereBeforeItStarts) {
  options_.dataset_config.datasets_to_split = {"idz"};
  try {
    (void)fit("");
    FAIL() << "it began";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::NotFound);
    EXPECT_THAT(failure.what(), HasSubstr("'idz'"));
  }
}

TEST_F(FaultStreaming, FailsWithWhatTheDataSetSays) {
  settings_.erase("rows");
  const auto result = fit("");
  ASSERT_TRUE(result.error);
  EXPECT_THAT(result.error->message, HasSubstr("rows"));
}

}  // namespace
}  // namespace troupe

// The program is its own process rank.
int main(int argc, char** argv) {
  troupe::Session session{argc, argv, {{"train", troupe::train}}, {{"ids", troupe::make_ids}}};
  troupe::session = &session;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

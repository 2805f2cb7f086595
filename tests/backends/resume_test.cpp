// An interrupted run that is resumed makes the same bits as one that never stopped.
#include "resume_run.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <mutex>
#include <random>
#include <set>

namespace troupe {
namespace {

using test::contents_of;
using test::Kind;
using test::ResumeCase;
using test::run_ranks;
using test::sharded;
using test::TempDirectory;
using test::Training;
using enum ShardingStrategy;

constexpr int kEpochs = 3;

struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

/// What a run made: each rank's loss by (epoch, batch), and the last checkpoint's contents.
struct Record {
  std::mutex mutex;
  std::map<std::tuple<int, std::int64_t, std::int64_t>, double> losses;
  std::map<std::string, std::string> final;
};

struct Cut {
  int after_batches = -1;  ///< of this life; negative: never
  int thrower = 0;         ///< the rank that throws; negative: all ranks return
};

bool has_checkpoint(const std::filesystem::path& directory) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator{directory, error}) {
    if (entry.path().filename().string().starts_with("checkpoint_")) return true;
  }
  return false;
}

/// One life of the program: loads the newest checkpoint there is, saves every `save_every` updates (or batches, wherever in a window those are),
/// perhaps is cut short.
void live(const ResumeCase& c, int ranks, int save_every, const Cut& cut, Record& run, bool in_windows = false) {
  run_ranks(ranks, [&](TrainContext& context) {
    Training training{context, c};
    const bool resumes = has_checkpoint(c.project.project_dir / "checkpoints");
    context.barrier();
    if (resumes) training.accelerator.load_state();
    int batches = 0, saved = training.num_updates;
    for (auto epoch = training.loader.epoch(); epoch < kEpochs; epoch = training.loader.epoch()) {
      for (const auto& batch : training.loader) {
        const auto number = training.loader.position().num_batches;
        const auto loss = training.step(batch);
        {
          const std::scoped_lock lock{run.mutex};
          const auto [known, fresh] = run.losses.try_emplace({context.world_rank(), epoch, number}, loss);
          if (!fresh) {
            EXPECT_EQ(known->second, loss) << c.name << ": rank " << context.world_rank() << ", epoch " << epoch << ", batch " << number;
          }
        }
        const bool after_update = training.num_updates >= saved + save_every && training.accelerator.sync_gradients();
        if (in_windows ? (batches + 1) % save_every == 0 : after_update) {
          training.accelerator.save_state();
          saved = training.num_updates;
        }
        if (++batches == cut.after_batches) {
          if (cut.thrower < 0) return;
          if (context.world_rank() == cut.thrower) throw Interrupted{};
        }
      }
    }
    (void)training.accelerator.wait_for_saves();
    training.accelerator.save_state(c.project.project_dir / "final");
    (void)training.accelerator.wait_for_saves();
  });
}

struct Setting {
  ResumeCase c;
  int ranks;
};

std::vector<Setting> settings() {
  const auto with = [](ResumeCase c, auto change) {
    change(c);
    return c;
  };
  std::vector<Setting> all{
      {{}, 1},
      {with({}, [](auto& c) { c.workers = 2; }), 2},
      {with(sharded(ShardOptimizer), [](auto& c) { c.kind = Kind::Adam; }), 3},
      {with(sharded(ShardGradients), [](auto& c) { c.accumulation = 2; c.workers = 3; }), 2},
      {with(sharded(ShardParameters), [](auto& c) { c.precision = Precision::BF16; }), 3},
      {sharded(ShardParameters, 2), 4},
      {with(sharded(ShardParameters), [](auto& c) { c.precision = Precision::FP16; c.accumulation = 3; }), 2},
      {with({}, [](auto& c) { c.checkpoint.async = true; c.kind = Kind::SGD; }), 2},
      {with(sharded(ShardParameters), [](auto& c) { c.checkpoint.async = true; c.workers = 1; c.kind = Kind::Lion; }), 2},
      {with(sharded(ShardGradients),
            [](auto& c) { c.sharding.offload_optimizer = {.place = Offload::Place::Disk, .path = std::filesystem::temp_directory_path(), .chunk_bytes = 8192}; }),
       2},
  };
  for (std::size_t i = 0; i < all.size(); ++i) all[i].c.name += "_" + std::to_string(i);
  return all;
}

struct Interruptions : testing::TestWithParam<int> {};

TEST_P(Interruptions, ResumeBitForBit) {
  const auto setting = settings()[static_cast<std::size_t>(GetParam())];
  TempDirectory directory;
  auto c = setting.c;
  c.project = {.project_dir = directory.path / "whole", .automatic_checkpoint_naming = true, .total_limit = 1};
  Record run;
  live(c, setting.ranks, 100000, {}, run);
  const auto expected = contents_of(directory.path / "whole" / "final");
  const auto batches = static_cast<int>(run.losses.size()) / setting.ranks;
  ASSERT_GT(batches, 3 * 4);
  for (int round = 0; round < 5; ++round) {
    std::mt19937 random{static_cast<unsigned>(GetParam() * 100 + round)};
    const auto draw = [&](int from, int to) { return std::uniform_int_distribution<int>{from, to}(random); };
    c.project.project_dir = directory.path / std::to_string(round);
    c.project.total_limit = draw(1, 3);
    const int save_every = draw(1, 4);
    const int lives = draw(2, 4);
    std::string cuts = "saves every " + std::to_string(save_every) + ", cuts:";
    for (int life = 0; life + 1 < lives; ++life) {
      const Cut cut{draw(1, batches / lives), draw(-1, setting.ranks - 1)};
      cuts += " " + std::to_string(cut.after_batches) + " by " + std::to_string(cut.thrower);
      try {
        live(c, setting.ranks, save_every, cut, run);
      } catch (const Interrupted&) {
      }
    }
    SCOPED_TRACE(c.name + ", round " + std::to_string(round) + ": " + cuts);
    live(c, setting.ranks, save_every, {}, run);
    EXPECT_TRUE(contents_of(c.project.project_dir / "final") == expected);
    const auto kept = std::distance(std::filesystem::directory_iterator{c.project.project_dir / "checkpoints"}, std::filesystem::directory_iterator{});
    EXPECT_LE(kept, *c.project.total_limit);
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, Interruptions, testing::Range(0, 10));

/// Saves and cuts fall anywhere, also inside a window: the run that resumes computes the window's batches again.
TEST(Resume, FromInsideAnAccumulationWindowMakesTheSameBits) {
  auto replicate = ResumeCase{};
  auto zero3 = sharded(ShardParameters), half = sharded(ShardParameters), async = ResumeCase{};
  replicate.accumulation = 3;
  zero3.accumulation = 4;
  half.accumulation = 3, half.precision = Precision::FP16, half.workers = 2;
  async.accumulation = 2, async.checkpoint.async = true;
  int number = 0;
  for (auto c : {replicate, zero3, half, async}) {
    TempDirectory directory;
    c.project = {.project_dir = directory.path / "whole", .automatic_checkpoint_naming = true, .total_limit = 1};
    Record run;
    live(c, 2, 100000, {}, run);
    const auto expected = contents_of(directory.path / "whole" / "final");
    for (const int save_every : {1, 5}) {
      SCOPED_TRACE(c.name + " " + std::to_string(number) + ", saves every " + std::to_string(save_every) + " batches");
      c.project.project_dir = directory.path / std::to_string(save_every);
      for (const int cut : {save_every, save_every + 3, 7}) {
        try {
          live(c, 2, save_every, {cut, 1}, run, true);
        } catch (const Interrupted&) {
        }
      }
      live(c, 2, save_every, {}, run, true);
      const auto got = contents_of(c.project.project_dir / "final");
      std::vector<std::string> other;
      for (const auto& [name, text] : expected) {
        if (!got.contains(name) || got.at(name) != text) other.push_back(name);
      }
      EXPECT_THAT(other, testing::IsEmpty());
    }
    ++number;
  }
}

TEST(Resume, FromInsideAWindowOnOtherRanksNoSampleIsRepeatedOrMissed) {
  TempDirectory directory;
  auto c = sharded(ShardParameters);
  c.accumulation = 4;
  c.num_samples = 48;
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, c};
    int batches = 0;
    for (const auto& batch : training.loader) {
      training.step(batch);
      if (++batches < 6) continue;  // 4 samples each over both ranks: the second window began after 16
      EXPECT_FALSE(training.accelerator.sync_gradients());
      training.accelerator.save_state(directory.path / "saved");
      EXPECT_THROW((void)training.accelerator.snapshot(), Failure);
      return;
    }
  });
  run_ranks(4, [&](TrainContext& context) {
    Training training{context, c};
    training.accelerator.load_state(directory.path / "saved");
    EXPECT_EQ(training.loader.samples_consumed(), 16);
    EXPECT_EQ(training.optimizer->num_updates(0), 1);
  });
}

TEST(Resume, AWindowWhoseBatchesNoPreparedLoaderGaveIsNotSaved) {
  TempDirectory directory;
  auto c = ResumeCase{};
  c.accumulation = 2;
  run_ranks(1, [&](TrainContext& context) {
    Training training{context, c};
    DataLoader other{std::make_shared<test::Ids>(8), {.batch_size = 2}};
    for (const auto& batch : other) {
      training.step(batch);
      break;
    }
    EXPECT_THROW(training.accelerator.save_state(directory.path / "saved"), Failure);
  });
}

TEST(Resume, OnOtherRanksNoSampleOfTheEpochIsRepeatedOrMissed) {
  struct Numbers final : MapDataset {
    [[nodiscard]] std::size_t size() const override { return 48; }
    [[nodiscard]] TensorDict get(std::size_t index) const override { return {{"x", at::full({}, static_cast<std::int64_t>(index), at::kLong)}}; }
  };
  for (const auto& [before, after] : {std::pair{4, 1}, {4, 3}, {1, 4}, {2, 3}}) {
    TempDirectory directory;
    std::mutex mutex;
    std::multiset<std::int64_t> seen;
    const auto live_on = [&](int ranks, int stop_after) {
      run_ranks(ranks, [&](TrainContext& context) {
        Accelerator accelerator{context};
        set_seed(static_cast<std::uint64_t>(ranks));  // another shuffle, if the seed were not saved
        DataLoader loader{std::make_shared<Numbers>(), {.batch_size = 2, .shuffle = true, .num_workers = context.world_rank() % 2}};
        accelerator.prepare(loader);
        if (stop_after < 0) accelerator.load_state(directory.path / "saved");
        int left = stop_after;
        for (const auto& batch : loader) {
          {
            const std::scoped_lock lock{mutex};
            for (std::int64_t i = 0; i < 2; ++i) seen.insert(batch["x"][i].item<std::int64_t>());
          }
          if (--left == 0) {
            accelerator.save_state(directory.path / "saved");
            return;
          }
        }
        EXPECT_EQ(loader.epoch(), 1);
      });
    };
    live_on(before, before == 1 ? 4 : 3);  // what is left is whole batches of the ranks after: a tail would be evened out
    live_on(after, -1);
    EXPECT_EQ(seen.size(), 48u) << before << " to " << after;
    EXPECT_EQ((std::set<std::int64_t>{seen.begin(), seen.end()}).size(), 48u);
  }
}

/// A user's own state.
struct Counter {
  int value = 0;
  [[nodiscard]] std::string state_dict() const { return std::to_string(value); }
  void load_state_dict(const std::string& bytes) { value = std::stoi(bytes); }
};

TEST(Resume, UsersObjectsAndFilesGoWithTheCheckpoint) {
  TempDirectory directory;
  const auto path = directory.path / "saved";
  run_ranks(3, [&](TrainContext& context) {
    Training training{context, {}};
    Counter all{10 + context.world_rank()}, own{20 + context.world_rank()};
    training.accelerator.register_for_checkpointing(all);
    training.accelerator.register_for_checkpointing_per_rank(own);
    auto hook = training.accelerator.register_save_state_pre_hook([&](const auto& models, const std::filesystem::path& into) {
      EXPECT_EQ(models.size(), 1u);
      if (context.world_rank() == 0) std::ofstream{into / "config.json"} << "{\"hidden\": 7}";
    });
    training.accelerator.save_state(path);
    hook.remove();
    training.accelerator.save_state(directory.path / "without");
  });
  EXPECT_TRUE(std::filesystem::exists(path / "config.json"));
  EXPECT_FALSE(std::filesystem::exists(directory.path / "without" / "config.json"));
  for (const int ranks : {3, 2}) {
    run_ranks(ranks, [&](TrainContext& context) {
      Training training{context, {}};
      Counter all, own;
      training.accelerator.register_for_checkpointing(all);
      training.accelerator.register_for_checkpointing_per_rank(own);
      std::filesystem::path asked;
      (void)training.accelerator.register_load_state_pre_hook([&](const auto&, const std::filesystem::path& from) { asked = from; });
      training.accelerator.load_state(path);
      EXPECT_EQ(all.value, 10);
      EXPECT_EQ(own.value, ranks == 3 ? 20 + context.world_rank() : 20);
      EXPECT_EQ(asked, path);
    });
  }
}

TEST(Resume, ADamagedNewestCheckpointGivesWayToTheOneBefore) {
  TempDirectory directory;
  ResumeCase c;
  c.project = {.project_dir = directory.path, .automatic_checkpoint_naming = true};
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, c};
    for (int i = 0; i < 2; ++i) {
      training.train(1);
      training.accelerator.save_state();
    }
  });
  const auto newest = directory.path / "checkpoints" / "checkpoint_1" / "model.safetensors";
  std::filesystem::resize_file(newest, std::filesystem::file_size(newest) - 1);
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, c};
    EXPECT_EQ(training.accelerator.load_state().directory.filename(), "checkpoint_0");
    EXPECT_EQ(training.optimizer->num_updates(0), 1);
    EXPECT_THROW(training.accelerator.save_state(), Failure);  // checkpoint_1 is there, and stays
  });
}

TEST(Project, ASaveWithoutADirectoryNeedsAutomaticNaming) {
  run_ranks(1, [](TrainContext& context) {
    Training training{context, {}};
    EXPECT_THROW(training.accelerator.save_state(), Failure);
    EXPECT_THROW(training.accelerator.load_state(), Failure);
  });
}

}  // namespace
}  // namespace troupe

// A checkpoint of one strategy and number of ranks is one of every other.
#include "resume_run.hpp"

#include <troupe/checkpoint_files.hpp>
#include <troupe/memory_account.hpp>

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace troupe {
namespace {

using test::contents_of;
using test::Kind;
using test::ResumeCase;
using test::run_ranks;
using test::sharded;
using test::TempDirectory;
using test::Training;
using testing::ElementsAre;
using testing::HasSubstr;
using enum ShardingStrategy;

/// Trains a few updates on `ranks` and saves.
void make_checkpoint(const ResumeCase& c, int ranks, const std::filesystem::path& directory) {
  run_ranks(ranks, [&](TrainContext& context) {
    Training training{context, c};
    training.train(3);
    training.accelerator.save_state(directory);
  });
}

/// Loads on `ranks`, and saves what is there then.
void resave(ResumeCase c, int ranks, const std::filesystem::path& from, const std::filesystem::path& to) {
  c.seed = 99;  // nothing of its own start may show
  run_ranks(ranks, [&](TrainContext& context) {
    Training training{context, c};
    training.accelerator.load_state(from);
    EXPECT_EQ(training.scheduler->last_step(), 3);
    training.accelerator.save_state(to);
  });
}

void expect_same(const std::map<std::string, std::string>& a, const std::map<std::string, std::string>& b) {
  for (const auto& [name, bytes] : a) {
    const auto found = b.find(name);
    EXPECT_TRUE(found != b.end() && found->second == bytes) << name << (found == b.end() ? " is missing" : " differs");
  }
  EXPECT_EQ(a.size(), b.size());
}

struct Change {
  std::string name;
  int from_ranks;
  ResumeCase from;
  int to_ranks;
  ResumeCase to;
};

ResumeCase offloaded(ResumeCase c) {
  c.sharding.offload_optimizer = {.place = Offload::Place::Disk, .path = std::filesystem::temp_directory_path(), .chunk_bytes = 8192};
  return c;
}
ResumeCase with(ResumeCase c, Kind kind) {
  c.kind = kind;
  return c;
}
ResumeCase half(ResumeCase c) {
  c.half_parameters = true;
  return c;
}

struct AnyToAny : testing::TestWithParam<Change> {};

TEST_P(AnyToAny, KeepsEveryByteOfWeightsAndState) {
  const auto& change = GetParam();
  TempDirectory directory;
  make_checkpoint(change.from, change.from_ranks, directory.path / "one");
  resave(change.to, change.to_ranks, directory.path / "one", directory.path / "two");
  const auto one = contents_of(directory.path / "one");
  EXPECT_TRUE(one.contains("model/head"));
  EXPECT_FALSE(one.contains("model/embedding.weight"));  // tied: once, under its first name
  expect_same(one, contents_of(directory.path / "two"));
}

INSTANTIATE_TEST_SUITE_P(
    Changes, AnyToAny,
    testing::Values(Change{"replicated_4_to_1", 4, {}, 1, {}}, Change{"replicated_1_to_4", 1, {}, 4, {}}, Change{"zero3_4_to_1", 4, sharded(ShardParameters), 1, sharded(ShardParameters)},
                    Change{"zero3_4_to_3", 4, sharded(ShardParameters), 3, sharded(ShardParameters)}, Change{"zero3_1_to_4", 1, sharded(ShardParameters), 4, sharded(ShardParameters)},
                    Change{"zero3_to_ddp", 4, sharded(ShardParameters), 2, {}}, Change{"ddp_to_zero2", 2, {}, 3, sharded(ShardGradients)},
                    Change{"zero1_to_zero3", 3, sharded(ShardOptimizer), 2, sharded(ShardParameters)}, Change{"hybrid_to_zero2", 4, sharded(ShardParameters, 2), 3, sharded(ShardGradients)},
                    Change{"zero1_to_hybrid", 1, sharded(ShardOptimizer), 4, sharded(ShardParameters, 2)}, Change{"ddp_half_4_to_3", 4, half({}), 3, half({})},
                    Change{"zero3_half_to_zero2_half", 4, half(sharded(ShardParameters)), 3, half(sharded(ShardGradients))},
                    Change{"disk_to_memory", 3, offloaded(sharded(ShardParameters)), 2, {}}, Change{"memory_to_disk", 2, {}, 3, offloaded(sharded(ShardGradients))},
                    Change{"adam", 4, with(sharded(ShardParameters), Kind::Adam), 2, with({}, Kind::Adam)}, Change{"sgd", 2, with({}, Kind::SGD), 3, with(sharded(ShardGradients), Kind::SGD)},
                    Change{"adagrad", 4, with(sharded(ShardGradients), Kind::Adagrad), 1, with({}, Kind::Adagrad)}, Change{"lion", 1, with({}, Kind::Lion), 4, with(sharded(ShardParameters), Kind::Lion)}),
    [](const auto& test) { return test.param.name; });

TEST(AnyToAny, WidensAndRoundsWhereTheTypesDiffer) {
  TempDirectory directory;
  make_checkpoint(half({}), 2, directory.path / "half");
  resave(half(sharded(ShardParameters)), 2, directory.path / "half", directory.path / "masters");  // fp32 ones
  const auto masters = contents_of(directory.path / "masters");
  EXPECT_THAT(masters.at("model/head"), testing::StartsWith("F32 11 7: "));
  resave(half({}), 3, directory.path / "masters", directory.path / "again");
  expect_same(contents_of(directory.path / "half"), contents_of(directory.path / "again"));
}

TEST(AnyToAny, SplitsFilesAsAskedAndReadsThem) {
  TempDirectory directory;
  auto c = sharded(ShardParameters);
  c.checkpoint.max_shard_size = 300;
  make_checkpoint(c, 3, directory.path / "split");
  EXPECT_TRUE(std::filesystem::exists(directory.path / "split" / "model.safetensors.index.json"));
  EXPECT_FALSE(std::filesystem::exists(directory.path / "split" / "model.safetensors"));
  resave({}, 2, directory.path / "split", directory.path / "whole");
  expect_same(contents_of(directory.path / "split"), contents_of(directory.path / "whole"));
}

std::string failure_of(TrainContext& context, const ResumeCase& c, const std::filesystem::path& from, Errc code = Errc::InvalidArgument) {
  Training training{context, c};
  try {
    training.accelerator.load_state(from);
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), code);
    return failure.what();
  }
  return "no failure";
}

TEST(LoadState, NamesTensorsThatDoNotFitOnEveryRank) {
  TempDirectory directory;
  make_checkpoint({}, 2, directory.path / "saved");
  run_ranks(2, [&](TrainContext& context) {
    auto wide = sharded(ShardParameters);
    wide.width = 8;
    EXPECT_THAT(failure_of(context, wide, directory.path / "saved"), HasSubstr("model.safetensors: tensor head is [11, 7], in the model [11, 8]"));
    const auto text = failure_of(context, with({}, Kind::Lion), directory.path / "saved");
    EXPECT_THAT(text, HasSubstr("not prepared: optimizer: exp_avg_sq."));
    EXPECT_THAT(text, HasSubstr(".strict = false"));
    const auto other = failure_of(context, with({}, Kind::SGD), directory.path / "saved");
    EXPECT_THAT(other, HasSubstr("missing there: optimizer: momentum_buffer."));
    EXPECT_THAT(failure_of(context, {}, directory.path / "nowhere", Errc::FileNotFound), HasSubstr("nowhere"));
  });
}

TEST(LoadState, TakesWhatFitsWhenItNeedNotBeStrict) {
  TempDirectory directory;
  make_checkpoint({}, 2, directory.path / "saved");
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, with(sharded(ShardParameters), Kind::Lion)};
    const auto report = training.accelerator.load_state(directory.path / "saved", {.strict = false});
    EXPECT_THAT(report.missing, ElementsAre());
    EXPECT_THAT(report.unexpected, testing::Contains("optimizer: exp_avg_sq.head"));
    EXPECT_EQ(training.optimizer->num_updates(0), 3);
  });
}

TEST(LoadState, TakesTheWeightsOfAPlainHuggingFaceDirectory) {
  TempDirectory directory;
  make_checkpoint({}, 2, directory.path / "saved");
  std::filesystem::create_directory(directory.path / "plain");
  std::filesystem::copy_file(directory.path / "saved" / "model.safetensors", directory.path / "plain" / "model.safetensors");
  run_ranks(2, [&](TrainContext& context) {
    EXPECT_THAT(failure_of(context, {}, directory.path / "plain"), HasSubstr("it holds 0 optimizers, but 1 were prepared"));
    Training training{context, sharded(ShardGradients)};
    training.accelerator.load_state(directory.path / "plain", {.strict = false});
    training.accelerator.save_state(directory.path / "again");
  });
  const auto one = contents_of(directory.path / "plain"), two = contents_of(directory.path / "again");
  for (const auto& [name, bytes] : one) EXPECT_TRUE(two.at(name) == bytes) << name;
}

TEST(LoadState, SaysThatTheOldLayoutIsNotRead) {
  TempDirectory directory;
  make_checkpoint({}, 1, directory.path / "saved");
  std::filesystem::remove(directory.path / "saved" / "manifest.troupe");
  std::ofstream{directory.path / "saved" / "state.json"} << "{}";
  run_ranks(1, [&](TrainContext& context) { EXPECT_THAT(failure_of(context, {}, directory.path / "saved", Errc::Unsupported), HasSubstr("before checkpoints had manifests")); });
}

TEST(LoadState, ADamagedByteIsFoundByAllRanks) {
  TempDirectory directory;
  const auto saved = directory.path / "saved";
  make_checkpoint({}, 2, saved);
  {
    std::fstream file{saved / "optimizer.safetensors", std::ios::in | std::ios::out | std::ios::binary};
    file.seekp(-3, std::ios::end);
    file.put('x');
  }
  run_ranks(3, [&](TrainContext& context) {
    EXPECT_THAT(failure_of(context, sharded(ShardParameters), saved, Errc::FileCorrupt), HasSubstr("optimizer.safetensors: bytes"));
  });
}

TEST(SaveState, ReplacesACheckpointButNothingElse) {
  TempDirectory directory;
  make_checkpoint({}, 2, directory.path / "saved");
  const auto before = contents_of(directory.path / "saved");
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, {}};
    training.train(5);
    training.accelerator.save_state(directory.path / "saved");
    std::filesystem::create_directories(directory.path / "mine");
    std::ofstream{directory.path / "mine" / "notes.txt"} << "x";
    try {
      training.accelerator.save_state(directory.path / "mine");
      ADD_FAILURE() << "replaced";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::AlreadyExists);
      EXPECT_THAT(failure.what(), HasSubstr("holds files that are no checkpoint"));
    }
  });
  EXPECT_NE(contents_of(directory.path / "saved"), before);
  EXPECT_TRUE(std::filesystem::exists(directory.path / "mine" / "notes.txt"));
  int hidden = 0;
  for (const auto& entry : std::filesystem::directory_iterator{directory.path}) hidden += entry.path().filename().string().starts_with(".");
  EXPECT_EQ(hidden, 0);
}

TEST(SaveState, TakesRankZerosWhereRanksMayDiffer) {
  TempDirectory directory;
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context};
    torch::nn::Linear frozen{64, 64};
    const auto fill = [&](int value) {
      const at::NoGradGuard no_grad;
      for (auto& parameter : frozen->parameters()) parameter.fill_(value);
    };
    for (auto& parameter : frozen->parameters()) parameter.set_requires_grad(false);
    fill(context.world_rank());
    accelerator.prepare(frozen);
    accelerator.save_state(directory.path / "saved");
    fill(7);
    accelerator.load_state(directory.path / "saved");
    for (const auto& parameter : frozen->parameters()) EXPECT_EQ(parameter.abs().max().item<float>(), 0);
  });
}

TEST(SaveState, FailsOnAllRanksWhenOneCannotWrite) {
  TempDirectory directory;
  std::ofstream{directory.path / "file"} << "x";
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, {}};
    EXPECT_THROW(training.accelerator.save_state(directory.path / "file" / "below"), Failure);
    EXPECT_EQ(training.accelerator.save_counts().written, 0);
    training.train(1);  // and goes on
  });
}

TEST(SaveState, GathersNothingAndCopiesNothing) {
  CountTensors::install();
  TempDirectory directory;
  run_ranks(2, [&](TrainContext& context) {
    auto c = sharded(ShardParameters);
    c.width = 256;
    Training training{context, c};
    training.train(2);
    auto memory = training.accelerator.memory();
    const CountTensors counting{memory};
    memory.reset_peaks();
    const auto before = memory.usage(MemoryCategory::Activations).now;
    const auto sent = context.communicator().traffic().sent_bytes;
    training.accelerator.save_state(directory.path / "saved");
    EXPECT_LE(memory.usage(MemoryCategory::Activations).peak - before, 32 << 10);
    EXPECT_LE(context.communicator().traffic().sent_bytes - sent, 4u << 10);
    EXPECT_EQ(memory.usage(MemoryCategory::Gathered).peak, 0);
    training.accelerator.load_state(directory.path / "saved");  // from here on the optimizer's state is counted
    const auto with_state = memory.usage(MemoryCategory::Activations).now;
    memory.reset_peaks();
    training.accelerator.load_state(directory.path / "saved");
    EXPECT_LE(memory.usage(MemoryCategory::Activations).peak - with_state, 32 << 10);
  });
}

}  // namespace
}  // namespace troupe

// What goes on from a snapshot in memory makes the same bits as what never stopped, on whatever ranks and strategy.
#include "resume_run.hpp"

#include <troupe/memory_snapshot.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <limits>
#include <mutex>
#include <random>

#include <sys/resource.h>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::contents_of;
using test::FakeContext;
using test::Kind;
using test::ResumeCase;
using test::run_ranks;
using test::sharded;
using test::TempDirectory;
using test::Training;
using enum ShardingStrategy;

constexpr int kEpochs = 3;

struct Memory {
  Memory() {
    char name[] = "/dev/shm/troupe-snapshot-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Memory() { fs::remove_all(path); }
  fs::path path;
};

struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

/// Each rank's loss by (epoch, batch), and the final state.
struct Record {
  std::mutex mutex;
  std::map<std::tuple<int, std::int64_t, std::int64_t>, double> losses;
  std::map<std::string, std::string> final;
};

/// One attempt: goes on from the newest snapshot, if there is one, and is cut short after `batches` by rank `thrower`.
void attempt(const ResumeCase& c, int ranks, const SnapshotOptions& snapshots, int batches, int thrower, Record& run) {
  TempDirectory directory;
  const auto snapshot = find_snapshot(snapshots.directory);
  run_ranks(
      ranks,
      [&](TrainContext& context) {
        Training training{context, c};
        if (snapshot) training.accelerator.load_state(snapshot->path);
        int done = 0;
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
            if (++done == batches && context.world_rank() == thrower) throw Interrupted{};
          }
        }
        training.accelerator.save_state(directory.path / "final");
      },
      {}, snapshots);
  run.final = contents_of(directory.path / "final");
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
  return {
      {{}, 1},
      {with({}, [](auto& c) { c.workers = 2; }), 2},
      {with({}, [](auto& c) { c.accumulation = 3; c.kind = Kind::SGD; }), 2},
      {with(sharded(ShardOptimizer), [](auto& c) { c.kind = Kind::Adam; }), 3},
      {with(sharded(ShardGradients), [](auto& c) { c.accumulation = 2; c.workers = 3; }), 2},
      {sharded(ShardParameters, 2), 4},
      {with({}, [](auto& c) { c.precision = Precision::FP16; }), 2},
      {with(sharded(ShardParameters), [](auto& c) { c.precision = Precision::FP16; c.accumulation = 3; }), 2},
      {with(sharded(ShardParameters), [](auto& c) { c.precision = Precision::BF16; c.half_parameters = true; c.kind = Kind::Lion; }), 3},
  };
}

struct Attempts : testing::TestWithParam<int> {};

TEST_P(Attempts, GoOnBitForBit) {
  const auto setting = settings()[static_cast<std::size_t>(GetParam())];
  const auto& c = setting.c;
  const int ranks = setting.ranks;
  Record run;
  attempt(c, ranks, {}, -1, 0, run);
  const auto expected = run.final;
  const auto batches = static_cast<int>(run.losses.size()) / ranks;
  for (int round = 0; round < 4; ++round) {
    std::mt19937 random{static_cast<unsigned>(GetParam() * 100 + round)};
    const auto draw = [&](int from, int to) { return std::uniform_int_distribution<int>{from, to}(random); };
    Memory memory;
    const SnapshotOptions snapshots{memory.path, round == 3 ? 3 : 1};
    for (int life = 0; life < 3; ++life) {
      const auto cut = draw(1, batches / 3);
      const auto before = find_snapshot(memory.path);
      EXPECT_THROW(attempt(c, ranks, snapshots, cut, draw(0, ranks - 1), run), Interrupted);
      const auto after = find_snapshot(memory.path);
      if (cut <= c.accumulation * (snapshots.every + 1)) continue;
      ASSERT_TRUE(after);
      EXPECT_TRUE(!before || before->path != after->path || before->number != after->number);
    }
    attempt(c, ranks, snapshots, -1, 0, run);
    EXPECT_TRUE(run.final == expected) << c.name << ", round " << round;
    EXPECT_LE(std::distance(fs::recursive_directory_iterator{memory.path}, {}), 3 + 2 * ranks) << "a series, two slots, a file a rank in each";
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, Attempts, testing::Range(0, 9));

TEST(Snapshot, AtMostOneStepIsLost) {
  for (const int cut : {2, 5, 11, 12}) {  // 11 batches are an epoch
    Memory memory;
    Record run;
    EXPECT_THROW(attempt(sharded(ShardGradients), 2, {memory.path, 1}, cut, 1, run), Interrupted);
    const auto info = find_snapshot(memory.path);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->steps, cut - 1);
    EXPECT_EQ(info->world_size, 2);
  }
}

TEST(Snapshot, LoadsOnOtherRanksAndStrategies) {
  struct Case {
    ResumeCase from, to;
    int before, after;
  };
  for (const auto& [from, to, before, after] : {Case{{}, {}, 4, 3}, Case{sharded(ShardParameters), {}, 2, 1}, Case{{}, sharded(ShardParameters), 1, 2},
                                                Case{sharded(ShardGradients), sharded(ShardParameters), 4, 3}, Case{sharded(ShardParameters, 2), sharded(ShardOptimizer), 4, 2},
                                                Case{sharded(ShardParameters), sharded(ShardGradients), 3, 5}}) {
    Memory memory;
    TempDirectory directory;
    Record run;
    EXPECT_THROW(attempt(from, before, {memory.path, 1}, 4, 0, run), Interrupted);
    const auto info = find_snapshot(memory.path);
    ASSERT_TRUE(info);
    const auto expected = contents_of(info->path);
    run_ranks(after, [&](TrainContext& context) {
      auto other = to;
      other.seed = 99;
      Training training{context, other};
      training.accelerator.load_state(info->path);
      EXPECT_EQ(training.loader.samples_consumed(), 3 * 2 * before);
      training.accelerator.save_state(directory.path / "loaded");
      training.train(2);  // and trains
    });
    EXPECT_TRUE(contents_of(directory.path / "loaded") == expected) << before << " ranks to " << after;
  }
}

TEST(Snapshot, EqualsACheckpointOfTheSameMoment) {
  Memory memory;
  TempDirectory directory;
  run_ranks(
      3,
      [&](TrainContext& context) {
        Training training{context, sharded(ShardParameters)};
        for (const auto& batch : training.loader) {
          training.step(batch);
          if (training.num_updates == 4) training.accelerator.save_state(directory.path / "saved");
          if (training.num_updates == 5) break;  // the snapshot of the 4th is the last
        }
      },
      {}, {memory.path, 1});
  const auto info = find_snapshot(memory.path);
  ASSERT_TRUE(info);
  EXPECT_TRUE(contents_of(info->path) == contents_of(directory.path / "saved"));
  const CheckpointReader snapshot{info->path}, saved{directory.path / "saved"};
  EXPECT_TRUE(*snapshot.state() == *saved.state());
  for (int r = 0; r < 3; ++r) EXPECT_TRUE(snapshot.rank_state(r) == saved.rank_state(r)) << r;
}

TEST(Snapshot, ATornOneIsNeverTakenAndTheOtherSlotServes) {
  Memory memory;
  run_ranks(2, [](TrainContext& context) { Training{context, {}}.train(5); }, {}, {memory.path, 1});
  const auto newest = find_snapshot(memory.path);
  ASSERT_TRUE(newest);
  const auto share = newest->path / "rank_00001.snapshot";
  fs::resize_file(share, fs::file_size(share) / 2);
  const auto older = find_snapshot(memory.path);
  ASSERT_TRUE(older);
  EXPECT_EQ(older->number, newest->number - 1);
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, {}};
    EXPECT_THROW(training.accelerator.load_state(newest->path), Failure);
    training.accelerator.load_state(older->path);
    EXPECT_EQ(training.optimizer->num_updates(0), older->steps);
  });
}

TEST(Snapshot, ALoopThatBrokeOffGoesOnWhereItsNextOneBegan) {
  const auto loop = [](TrainContext& context, Training& training, int first, int second, std::vector<double>& losses) {
    const auto run = [&](int batches) {
      int left = batches;
      for (const auto& batch : training.loader) {
        const auto loss = training.step(batch);
        if (context.world_rank() == 0) losses.push_back(loss);
        if (--left == 0) break;
      }
    };
    if (first > 0) run(first);
    run(second);
  };
  std::vector<double> whole, resumed;
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, {}};
    loop(context, training, 3, 6, whole);
  });
  for (const int second : {1, 2, 4}) {
    Memory memory;
    std::vector<double> ignored;
    run_ranks(
        2,
        [&](TrainContext& context) {
          Training training{context, {}};
          loop(context, training, 3, second, ignored);
        },
        {}, {memory.path, 1});
    const auto info = find_snapshot(memory.path);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->steps, 3 + second - 1);
    resumed.clear();
    run_ranks(2, [&](TrainContext& context) {
      Training training{context, {}};
      training.accelerator.load_state(info->path);
      loop(context, training, 0, 6 - second + 1, resumed);
    });
    EXPECT_EQ(resumed, std::vector<double>(whole.begin() + 3 + second - 1, whole.end())) << second;
  }
}

TEST(Snapshot, StepsAreBatchesAndSnapshotsUpdates) {
  Memory memory;
  run_ranks(
      2,
      [&](TrainContext& context) {
        auto c = sharded(ShardGradients);
        c.accumulation = 2;
        Training training{context, c};
        DataLoader evaluation{std::make_shared<test::Ids>(12), {.batch_size = 2}};
        training.accelerator.prepare(evaluation);
        auto& fake = dynamic_cast<FakeContext&>(context);
        int updates = 0, evaluated = 0, batches = 0;
        for (const auto& batch : training.loader) {
          training.step(batch);
          ++batches;
          if (training.num_updates == updates) continue;
          updates = training.num_updates;
          if (updates != 2) continue;
          for (const auto& other : evaluation) evaluated += static_cast<int>(other.size() > 0);
          EXPECT_EQ(training.accelerator.snapshot_counts().taken, 1) << "not while an evaluation goes on";
        }
        EXPECT_EQ(batches, 11);
        EXPECT_EQ(evaluated, 3);
        EXPECT_EQ(fake.steps_completed, batches + evaluated);
        EXPECT_EQ(updates, 6);  // the last window has one batch
        EXPECT_EQ(training.accelerator.snapshot_counts().taken, updates);
        EXPECT_EQ(training.accelerator.snapshot_counts().skipped, 0);
      },
      {}, {memory.path, 1});
  EXPECT_EQ(find_snapshot(memory.path)->steps, 6);
}

TEST(Snapshot, KeepsTheReportsSentBefore) {
  Memory memory;
  run_ranks(
      1,
      [&](TrainContext& context) {
        Training training{context, {}};
        for (int epoch = 0; epoch < 2; ++epoch) {
          for (const auto& batch : training.loader) training.step(batch);
          EXPECT_EQ(find_snapshot(memory.path)->reports, static_cast<std::uint64_t>(epoch)) << "the end of an epoch is before its report";
          context.report({{"epoch", epoch}}, std::nullopt);
        }
        for (const auto& batch : training.loader) {
          training.step(batch);
          if (training.num_updates == 46) break;
        }
      },
      {}, {memory.path, 1});
  EXPECT_EQ(find_snapshot(memory.path)->reports, 2);
  EXPECT_EQ(find_snapshot(memory.path)->steps, 45);
}

TEST(Snapshot, OfALoopWithoutALoaderIsAskedFor) {
  Memory memory;
  run_ranks(
      2,
      [&](TrainContext& context) {
        ResumeCase c;
        c.accumulation = 2;
        Training training{context, c};
        auto& accelerator = training.accelerator;
        for (int step = 0; step < 12; ++step) {
          const auto window = accelerator.accumulate();
          accelerator.backward(training.net(at::full({4}, step % 3, at::kLong)).sum());
          training.optimizer->step();
          training.optimizer->zero_grad();
          if (!accelerator.sync_gradients()) {
            EXPECT_THROW(accelerator.snapshot(), Failure);
            continue;
          }
          EXPECT_EQ(accelerator.snapshot(), (step / 2) % 2 == 1) << step;  // every second update
          EXPECT_FALSE(accelerator.snapshot()) << "there was no update";
        }
        EXPECT_EQ(accelerator.snapshot_counts().taken, 3);
      },
      {}, {memory.path, 2});
  EXPECT_EQ(find_snapshot(memory.path)->steps, 6);
}

TEST(Snapshot, WhatIsNotFiniteIsNotTakenAndSaid) {
  Memory memory;
  run_ranks(
      2,
      [&](TrainContext& context) {
        Training training{context, sharded(ShardParameters)};
        const at::NoGradGuard no_grad;
        int batches = 0;
        for (const auto& batch : training.loader) {
          if (++batches == 4 && context.world_rank() == 1) training.optimizer->state_view(0, 1).fill_(std::numeric_limits<float>::quiet_NaN());
          const at::AutoGradMode grad{true};
          training.step(batch);
          if (batches == 7) break;
        }
        EXPECT_EQ(training.accelerator.snapshot_counts().taken + training.accelerator.snapshot_counts().not_finite, 6);
        EXPECT_GT(training.accelerator.snapshot_counts().taken, 2);
      },
      {}, {memory.path, 1});
  EXPECT_EQ(find_snapshot(memory.path)->steps, 3);
}

/// Much of it on one rank.
struct Ballast {
  std::string bytes;
  [[nodiscard]] std::string state_dict() const { return bytes; }
  void load_state_dict(const std::string& saved) { bytes = saved; }
};

TEST(Snapshot, WithoutRoomOnOneRankNoneTakesAnyAndTrainingGoesOn) {
  struct rlimit before {};
  ::getrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, SIG_IGN);
  const auto run = [&](const fs::path& memory, rlim_t limit) {
    TempDirectory directory;
    const struct rlimit now {limit, before.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &now);
    run_ranks(
        2,
        [&](TrainContext& context) {
          Training training{context, {}};
          Ballast ballast{std::string(context.world_rank() == 1 ? 400'000 : 0, 'x')};
          training.accelerator.register_for_checkpointing_per_rank(ballast);
          training.train(6);
          EXPECT_EQ(training.accelerator.snapshot_counts().off, limit != before.rlim_cur) << context.world_rank();
          EXPECT_EQ(training.accelerator.snapshot_counts().taken, limit != before.rlim_cur ? 0 : 5);
          context.barrier();
          if (context.world_rank() == 0) ::setrlimit(RLIMIT_FSIZE, &before);
          context.barrier();
          training.accelerator.save_state(directory.path / "final");
        },
        {}, {memory, 1});
    return contents_of(directory.path / "final");
  };
  Memory roomy, narrow;
  const auto expected = run(roomy.path, before.rlim_cur);
  testing::internal::CaptureStderr();
  EXPECT_TRUE(run(narrow.path, 200'000) == expected);
  const auto told = testing::internal::GetCapturedStderr();
  EXPECT_THAT(told, testing::AllOf(testing::HasSubstr("no snapshots in memory are taken from here on"), testing::HasSubstr("rank 1: cannot take"), testing::HasSubstr("--shm-size")));
  EXPECT_EQ(told.find("no snapshots"), told.rfind("no snapshots")) << "once";
  EXPECT_TRUE(fs::is_empty(narrow.path));
}

}  // namespace
}  // namespace troupe

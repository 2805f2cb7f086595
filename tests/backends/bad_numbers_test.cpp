// Losses and gradients that are not finite: all ranks do the same in the same step.
#include "counting_communicator.hpp"
#include "resume_run.hpp"

#include <troupe/memory_snapshot.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/sqrt.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <thread>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::contents_of;
using test::ResumeCase;
using test::run_ranks;
using test::sharded;
using test::TempDirectory;
using test::Training;
using Policy = BadNumbers::Policy;
using enum ShardingStrategy;

struct Memory {
  Memory() {
    char name[] = "/dev/shm/troupe-numbers-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Memory() { fs::remove_all(path); }
  fs::path path;
};

enum class Spoil { Nothing, Loss, Gradient };

/// One batch, whose loss or gradient is spoilt on this rank; `update`: false leaves the optimizer's and scheduler's step out.
void step(Training& t, const Batch& batch, Spoil spoil, bool update = true) {
  const auto window = t.accelerator.accumulate();
  auto loss = [&] {
    const auto scope = t.accelerator.autocast();
    return at::cross_entropy_loss(t.net(batch["id"]).to(at::kFloat), batch["label"]);
  }();
  if (spoil == Spoil::Loss) loss = loss * std::numeric_limits<double>::quiet_NaN();
  if (spoil == Spoil::Gradient) loss = loss + at::sqrt((t.net->bias * 0).sum());  // finite, and its slope is 0 times infinity
  t.accelerator.backward(loss);
  t.accelerator.clip_grad_norm(t.parameters, 1.0);
  if (update) {
    t.optimizer->step();
    t.scheduler->step();
  }
  t.optimizer->zero_grad();
}

ResumeCase with(ResumeCase c, BadNumbers bad) {
  c.bad_numbers = bad;
  return c;
}

std::vector<ResumeCase> strategies() { return {ResumeCase{}, sharded(ShardGradients), sharded(ShardParameters)}; }

TEST(BadNumbers, SkipLeavesOutThatUpdateOnAllRanks) {
  for (const auto& c : strategies()) {
    for (const auto spoil : {Spoil::Loss, Spoil::Gradient}) {
      TempDirectory directory;
      const auto run = [&](bool spoilt, const fs::path& target) {
        run_ranks(3, [&](TrainContext& context) {
          Training t{context, with(c, {.policy = spoilt ? Policy::Skip : Policy::Ignore})};
          int number = 0;
          for (const auto& batch : t.loader) {
            const bool bad = ++number == 4;
            if (spoilt) step(t, batch, bad && context.world_rank() == 1 ? spoil : Spoil::Nothing);
            else step(t, batch, Spoil::Nothing, !bad);
            EXPECT_EQ(t.accelerator.optimizer_step_was_skipped(), spoilt && bad) << "rank " << context.world_rank() << ", batch " << number;
          }
          EXPECT_EQ(t.optimizer->num_updates(0), number - 1);
          EXPECT_EQ(t.scheduler->last_step(), number - 1);
          EXPECT_EQ(t.accelerator.bad_number_counts().skipped, spoilt ? 1 : 0);
          t.accelerator.save_state(target);
        });
      };
      run(true, directory.path / "spoilt");
      run(false, directory.path / "left_out");
      EXPECT_TRUE(contents_of(directory.path / "spoilt") == contents_of(directory.path / "left_out")) << c.name;
    }
  }
}

TEST(BadNumbers, HaltNamesRankUpdateAndSamplesOnAllRanks) {
  for (const auto& c : strategies()) {
    for (const auto spoil : {Spoil::Loss, Spoil::Gradient}) {
      std::mutex mutex;
      std::vector<std::string> texts;
      std::string samples;
      run_ranks(2, [&](TrainContext& context) {
        Training t{context, with(c, {.policy = Policy::Halt})};
        int number = 0;
        for (const auto& batch : t.loader) {
          const bool bad = ++number == 3;
          try {
            step(t, batch, bad && context.world_rank() == 1 ? spoil : Spoil::Nothing);
            EXPECT_FALSE(bad);
          } catch (const Failure& failure) {
            const std::scoped_lock lock{mutex};
            EXPECT_EQ(failure.code(), Errc::DataMalformed);
            texts.push_back(failure.what());
            const auto& indices = t.loader.batch_indices();
            EXPECT_EQ(indices.size(), 2);
            if (context.world_rank() == 1) samples = std::to_string(indices[0]) + ", " + std::to_string(indices[1]);
            // They are the samples of this very batch.
            for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(batch["id"][static_cast<std::int64_t>(i)].item<std::int64_t>(), indices[i] % 11);
            break;
          }
        }
        EXPECT_EQ(number, 3);
        EXPECT_EQ(t.optimizer->num_updates(0), 2);
      });
      ASSERT_EQ(texts.size(), 2);
      EXPECT_EQ(texts[0], texts[1]);
      EXPECT_THAT(texts[0], testing::AllOf(testing::HasSubstr("update 3 of rank"), testing::HasSubstr("samples " + samples + " of the data set")));
      EXPECT_THAT(texts[0], testing::HasSubstr(spoil == Spoil::Loss ? "rank 1: its loss is nan" : "ranks has gradients that are not finite")) << texts[0];
      if (spoil == Spoil::Loss) {
        EXPECT_THAT(texts[0], testing::Not(testing::HasSubstr("rank 0")));
      }
    }
  }
}

TEST(BadNumbers, RollBackGivesTheStateOfAnEarlierUpdateAndDataGoOn) {
  for (const auto& c : strategies()) {
    Memory memory;
    TempDirectory directory;
    run_ranks(
        2,
        [&](TrainContext& context) {
          Training t{context, with(c, {.policy = Policy::RollBack, .roll_back_steps = 1})};
          int number = 0;
          for (const auto& batch : t.loader) {
            ++number;
            if (number == 4) t.accelerator.save_state(directory.path / "third");  // after update 3
            const auto consumed = t.loader.samples_consumed();
            step(t, batch, number == 5 && context.world_rank() == 0 ? Spoil::Loss : Spoil::Nothing);
            EXPECT_EQ(t.loader.samples_consumed(), consumed);
            if (number == 5) {
              EXPECT_EQ(t.optimizer->num_updates(0), 3);
              EXPECT_EQ(t.scheduler->last_step(), 3);
              t.accelerator.save_state(directory.path / "rolled_back");
            }
          }
          EXPECT_EQ(number, 11);
          EXPECT_EQ(t.optimizer->num_updates(0), 9);
          EXPECT_EQ(t.accelerator.bad_number_counts().rolled_back, 1);
          EXPECT_EQ(t.accelerator.snapshot_counts().skipped, 0);
        },
        {}, {memory.path, 1});
    EXPECT_TRUE(contents_of(directory.path / "third") == contents_of(directory.path / "rolled_back")) << c.name;
    EXPECT_EQ(find_snapshot(memory.path)->steps, 9);
  }
}

TEST(BadNumbers, RollBackWithoutASnapshotSaysWhatToDo) {
  for (const int every : {0, 1}) {
    Memory memory;
    int thrown = 0;
    std::mutex mutex;
    run_ranks(
        2,
        [&](TrainContext& context) {
          Training t{context, with({}, {.policy = Policy::RollBack, .roll_back_steps = 5})};
          int number = 0;
          for (const auto& batch : t.loader) {
            try {
              step(t, batch, ++number == 9 ? Spoil::Loss : Spoil::Nothing);
            } catch (const Failure& failure) {
              const std::scoped_lock lock{mutex};
              ++thrown;
              EXPECT_THAT(failure.what(), testing::AllOf(testing::HasSubstr("snapshot_every"), testing::HasSubstr("update 3 or before"),
                                                         testing::HasSubstr(every ? "updates 8 and 7" : "none at all")));
              return;
            }
          }
        },
        {}, {memory.path, every});
    EXPECT_EQ(thrown, 2);
  }
}

TEST(BadNumbers, InOneOfSeveralAccumulatedBatchesTheWindowIsSkipped) {
  auto c = with(sharded(ShardParameters), {.policy = Policy::Skip});
  c.accumulation = 2;
  testing::internal::CaptureStderr();
  run_ranks(2, [&](TrainContext& context) {
    Training t{context, c};
    int number = 0;
    for (const auto& batch : t.loader) {
      step(t, batch, ++number == 3 && context.world_rank() == 0 ? Spoil::Loss : Spoil::Nothing);
      if (number == 6) break;
    }
    EXPECT_EQ(t.optimizer->num_updates(0), 2);
  });
  const auto told = testing::internal::GetCapturedStderr();
  EXPECT_THAT(told, testing::ContainsRegex("update 2 of rank 0: its loss is nan \\(samples [0-9]+, [0-9]+, [0-9]+, [0-9]+ of the data set\\); the update is skipped"));
}

TEST(BadNumbers, AreMadeWhereAFaultWantsOne) {
  run_ranks(2, [&](TrainContext& context) {
    Training t{context, with(sharded(ShardGradients), {.policy = Policy::Skip})};
    int number = 0;
    for (const auto& batch : t.loader) {
      dynamic_cast<test::FakeContext&>(context).bad_number = ++number == 2 && context.world_rank() == 1;
      step(t, batch, Spoil::Nothing);
      if (number == 4) break;
    }
    EXPECT_EQ(t.optimizer->num_updates(0), 3);
    EXPECT_EQ(t.accelerator.bad_number_counts().skipped, 1);
  });
}

TEST(BadNumbers, TooManyInARowHalt) {
  run_ranks(2, [&](TrainContext& context) {
    Training t{context, with({}, {.policy = Policy::Skip, .max_in_a_row = 2})};
    int number = 0;
    for (const auto& batch : t.loader) {
      ++number;
      const bool bad = number == 1 || number == 2 || number >= 4;
      if (number == 6) {
        EXPECT_THROW(step(t, batch, Spoil::Loss), Failure);
        return;
      }
      EXPECT_NO_THROW(step(t, batch, bad ? Spoil::Loss : Spoil::Nothing));
    }
  });
}

TEST(BadNumbers, OverflowUnderFp16IsTheLossScalesBusiness) {
  auto c = with({}, {.policy = Policy::Halt});
  c.precision = Precision::FP16;
  run_ranks(2, [&](TrainContext& context) {
    Training t{context, c};
    const auto before = t.accelerator.loss_scale();
    int number = 0;
    for (const auto& batch : t.loader) {
      ++number;
      if (number == 3) {
        EXPECT_THROW(step(t, batch, context.world_rank() == 0 ? Spoil::Loss : Spoil::Nothing), Failure);
        EXPECT_LE(t.accelerator.loss_scale(), before / 2);
        return;
      }
      EXPECT_NO_THROW(step(t, batch, number == 1 ? Spoil::Gradient : Spoil::Nothing));
      if (number == 1) {
        EXPECT_TRUE(t.accelerator.optimizer_step_was_skipped());
      }
    }
  });
}

TEST(BadNumbers, NoCheckpointOfThemIsCommitted) {
  for (const bool async : {false, true}) {
    for (const auto& strategy : strategies()) {
      TempDirectory directory;
      auto c = with(strategy, {.policy = Policy::Skip});
      c.checkpoint.async = async;
      std::atomic<int> refused{0};
      run_ranks(
          2,
          [&](TrainContext& context) {
            Training t{context, c};
            t.train(2);
            t.accelerator.save_state(directory.path / "good");
            EXPECT_TRUE(t.accelerator.wait_for_saves().ok());
            {
              const at::NoGradGuard no_grad;
              t.optimizer->state_view(1, 0).fill_(std::numeric_limits<float>::infinity());
            }
            context.barrier();
            if (async) {
              t.accelerator.save_state(directory.path / "good");
              const bool written = t.accelerator.wait_for_saves().ok();  // of other ranks: their own part, which may be in order
              EXPECT_TRUE(!written || context.world_rank() != 0);
            } else {
              EXPECT_THROW(t.accelerator.save_state(directory.path / "good"), Failure);
            }
            const auto checkpoint = t.accelerator.checkpoint();
            if (checkpoint.pending() && !checkpoint.pending()->wait().ok()) ++refused;
          },
          directory.path);
      EXPECT_GE(refused, 1) << "whose share it is; without it nothing is committed";
      EXPECT_EQ(verify_checkpoint(directory.path / "good"), std::vector<std::string>{}) << "the one before stays";
    }
  }
}

TEST(BadNumbers, CostAReductionOfOneByteOrNone) {
  const auto reductions = [](const ResumeCase& c) {
    std::mutex mutex;
    std::int64_t count = 0;
    auto seats = make_thread_group(2, std::chrono::seconds{20});
    std::vector<std::thread> threads;
    for (auto& seat : seats) {
      threads.emplace_back([&] {
        test::CountingCommunicator counting{*seat};
        test::FakeContext context{counting};
        Training t{context, c};
        const auto before = counting.all_reduced_bytes;
        int number = 0;
        for (const auto& batch : t.loader) {
          step(t, batch, Spoil::Nothing);
          if (++number == 5) break;
        }
        const std::scoped_lock lock{mutex};
        count = static_cast<std::int64_t>(counting.all_reduced_bytes - before);
      });
    }
    for (auto& thread : threads) thread.join();
    return count;
  };
  EXPECT_EQ(reductions(with({}, {.policy = Policy::Skip})), reductions({}) + 5);
  auto fp16 = ResumeCase{};
  fp16.precision = Precision::FP16;
  EXPECT_EQ(reductions(with(fp16, {.policy = Policy::Skip})), reductions(fp16));
}

}  // namespace
}  // namespace troupe

// Saves beside training.
#include "background_saver.hpp"
#include "resume_run.hpp"

#include <troupe/checkpoint_files.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using test::contents_of;
using test::ResumeCase;
using test::run_ranks;
using test::sharded;
using test::TempDirectory;
using test::Training;
using testing::HasSubstr;

/// A part of one tensor of `size` bytes.
struct OnePart {
  explicit OnePart(std::size_t size) : bytes(size, std::byte{7}) {
    part.files.push_back({.stem = "model", .tensors = {{"w", SafetensorsDtype::U8, {size}}}, .metadata = {}, .mine = {{0, 0, bytes}}, .max_shard_bytes = 0});
    part.state = TrainState{};
  }
  std::vector<std::byte> bytes;
  CheckpointPart part;
};

TEST(BackgroundSaver, WritesWhatWasThereWhenItWasAsked) {
  TempDirectory directory;
  OnePart one{100000};
  std::atomic<bool> go = false;
  detail::BackgroundSaver saver;
  const auto pending = saver.start(one.part, [&](PartSnapshot& snapshot) {
    while (!go) std::this_thread::sleep_for(1ms);
    snapshot.write(directory.path);
  }, [](const Outcome&) {});
  EXPECT_TRUE(saver.busy());
  EXPECT_FALSE(pending->done());
  std::ranges::fill(one.bytes, std::byte{9});  // the step goes on
  go = true;
  EXPECT_TRUE(pending->wait().ok());
  std::ifstream file{directory.path / "model.safetensors", std::ios::binary};
  const std::string written{std::istreambuf_iterator<char>{file}, {}};
  EXPECT_EQ(written.substr(written.size() - 100000), std::string(100000, 7));
}

TEST(BackgroundSaver, AnErrorIsHowTheSaveEndedAndTheNextOneIsFree) {
  detail::BackgroundSaver saver;
  OnePart one{10};
  std::string heard;
  const auto fails = saver.start(one.part, [](PartSnapshot&) { throw Failure{Errc::StorageUnavailable, "disk full"}; }, [&](const Outcome& outcome) { heard = outcome.text(); });
  EXPECT_EQ(fails->wait().text(), "disk full");
  EXPECT_EQ(heard, "disk full");
  EXPECT_TRUE(saver.start(one.part, [](PartSnapshot&) {}, [](const Outcome&) {})->wait().ok());
}

TEST(BackgroundSaver, TheNextSaveAndTheEndWaitForTheOneUnderWay) {
  OnePart one{10};
  std::atomic<int> ended = 0;
  {
    detail::BackgroundSaver saver;
    const auto slow = [&](PartSnapshot&) {
      std::this_thread::sleep_for(20ms);
      ++ended;
    };
    (void)saver.start(one.part, slow, [](const Outcome&) {});
    (void)saver.start(one.part, slow, [](const Outcome&) {});
    EXPECT_EQ(ended, 1);
  }
  EXPECT_EQ(ended, 2);
}

ResumeCase async(ResumeCase c, WhenBusy when_busy = WhenBusy::Wait) {
  c.checkpoint.async = true;
  c.checkpoint.when_busy = when_busy;
  return c;
}

TEST(AsyncSave, HoldsTheStateOfItsStepWhileTrainingGoesOn) {
  TempDirectory directory;
  run_ranks(3, [&](TrainContext& context) {
    Training training{context, async(sharded(ShardingStrategy::ShardParameters))};
    for (int i = 0; i < 4; ++i) {
      training.train(1);
      training.accelerator.save_state(directory.path / ("async_" + std::to_string(i)));
      training.train(1);
    }
    EXPECT_TRUE(training.accelerator.wait_for_saves().ok());
    EXPECT_EQ(training.accelerator.save_counts().written, 4);
  });
  run_ranks(3, [&](TrainContext& context) {
    Training training{context, sharded(ShardingStrategy::ShardParameters)};
    for (int i = 0; i < 4; ++i) {
      training.train(1);
      training.accelerator.save_state(directory.path / ("sync_" + std::to_string(i)));
      training.train(1);
    }
  });
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(contents_of(directory.path / ("async_" + std::to_string(i))) == contents_of(directory.path / ("sync_" + std::to_string(i)))) << i;
  }
}

TEST(AsyncSave, AReportedCheckpointCarriesItsSave) {
  TempDirectory directory;
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, async({})};
    training.train(1);
    const auto checkpoint = training.accelerator.checkpoint();
    EXPECT_EQ(checkpoint.num_writers(), 2);
    ASSERT_NE(checkpoint.pending(), nullptr);
    EXPECT_TRUE(checkpoint.pending()->wait().ok());
    EXPECT_TRUE(std::filesystem::exists(checkpoint.path() / rank_file_name(context.world_rank())));
  }, directory.path);
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, {}};
    EXPECT_EQ(training.accelerator.checkpoint().pending(), nullptr);  // written already
  }, directory.path);
}

TEST(AsyncSave, AllRanksSkipWhenOneIsBusyAndCountIt) {
  TempDirectory directory;
  run_ranks(2, [&](TrainContext& context) {
    auto c = async({}, WhenBusy::Skip);
    c.width = 700;
    Training training{context, c};
    training.train(1);
    int skipped = 0;
    for (int i = 0; i < 20; ++i) {
      const auto checkpoint = training.accelerator.checkpoint();
      if (checkpoint.pending()->done() && checkpoint.pending()->wait().code() == Errc::Cancelled) ++skipped;
    }
    EXPECT_EQ(training.accelerator.save_counts().skipped, skipped);
    EXPECT_GT(skipped, 0);
    EXPECT_LT(skipped, 20);
    EXPECT_TRUE(training.accelerator.wait_for_saves().ok());
    EXPECT_EQ(training.accelerator.save_counts().written, 20 - skipped);
  }, directory.path);
}

TEST(AsyncSave, AFailedOneIsNewsAndTrainingGoesOn) {
  TempDirectory directory;
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, async({})};
    training.train(1);
    auto hook = training.accelerator.register_save_state_pre_hook([&](const auto&, const std::filesystem::path& into) {
      context.barrier();
      if (context.world_rank() == 0) std::filesystem::create_directory(into / "model.safetensors");  // in the way
      context.barrier();
    });
    const auto failed = training.accelerator.save_state(directory.path / "saved");
    const bool whole = context.world_rank() == 0;  // the other's save ends with its part, which may be there before rank 0 gives up
    (void)failed->wait();
    if (whole) {
      EXPECT_EQ(failed->wait().code(), Errc::StorageUnavailable);
      EXPECT_THAT(failed->wait().text(), HasSubstr("model.safetensors"));
    }
    EXPECT_FALSE(std::filesystem::exists(directory.path / "saved"));
    hook.remove();
    training.train(1);
    const auto good = training.accelerator.save_state(directory.path / "saved");
    EXPECT_TRUE(good->wait().ok()) << good->wait().text();
    (void)training.accelerator.wait_for_saves();
    if (whole) {
      EXPECT_EQ(training.accelerator.save_counts().failed, 1);
      EXPECT_EQ(training.accelerator.save_counts().written, 1);
    }
  });
  EXPECT_TRUE(contents_of(directory.path / "saved").contains("model/bias"));
}

TEST(Sync, AFailedCheckpointIsNewsToo) {
  TempDirectory directory;
  run_ranks(2, [&](TrainContext& context) {
    Training training{context, {}};
    auto hook = training.accelerator.register_save_state_pre_hook([&](const auto&, const std::filesystem::path& into) {
      context.barrier();
      if (context.world_rank() == 0) std::filesystem::create_directory(into / "model.safetensors");
      context.barrier();
    });
    const auto checkpoint = training.accelerator.checkpoint();
    ASSERT_NE(checkpoint.pending(), nullptr);
    EXPECT_EQ(checkpoint.pending()->wait().code(), Errc::StorageUnavailable);
    training.train(1);
  }, directory.path);
}

}  // namespace
}  // namespace troupe

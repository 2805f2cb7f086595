#include <troupe/checkpoint_ref.hpp>
#include <troupe/pending_save.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;

TEST(PendingSave, WaitersSeeHowItEnded) {
  PendingSave save;
  EXPECT_FALSE(save.done());
  std::thread writer{[&save] {
    std::this_thread::sleep_for(5ms);
    save.finish({Errc::StorageUnavailable, "disk full"});
  }};
  EXPECT_EQ(save.wait().code(), Errc::StorageUnavailable);
  EXPECT_EQ(save.wait(std::chrono::steady_clock::now()).text(), "disk full");
  EXPECT_TRUE(save.done());
  writer.join();
}

TEST(PendingSave, ADeadlineEndsTheWaitButNotTheSave) {
  PendingSave save;
  EXPECT_EQ(save.wait(std::chrono::steady_clock::now() + 2ms).code(), Errc::DeadlinePassed);
  EXPECT_FALSE(save.done());
  save.finish({});
  EXPECT_TRUE(save.wait().ok());
}

TEST(PendingSave, CallbacksRunOnceInOrderBeforeAndAfterTheEnd) {
  PendingSave save;
  std::vector<int> calls;
  save.when_done([&](const Outcome& outcome) { calls.push_back(outcome.ok() ? 1 : -1); });
  save.when_done([&](const Outcome&) { calls.push_back(2); });
  EXPECT_THAT(calls, ElementsAre());
  save.finish({});
  EXPECT_THAT(calls, ElementsAre(1, 2));
  save.when_done([&](const Outcome&) { calls.push_back(3); });
  EXPECT_THAT(calls, ElementsAre(1, 2, 3));
}

TEST(PendingSave, WaitersReturnAfterTheCallbacks) {
  PendingSave save;
  std::atomic<bool> called{false};
  save.when_done([&](const Outcome&) {
    std::this_thread::sleep_for(20ms);
    called = true;
  });
  std::thread writer{[&save] { save.finish({}); }};
  EXPECT_TRUE(save.wait().ok());
  EXPECT_TRUE(called);
  writer.join();
}

TEST(PendingSave, OnlyTheFirstEndCounts) {
  PendingSave save;
  int calls = 0;
  save.when_done([&](const Outcome&) { ++calls; });
  save.finish({});
  save.finish({Errc::Internal, "late"});
  EXPECT_TRUE(save.wait().ok());
  EXPECT_EQ(calls, 1);
}

TEST(PendingSave, ACallbackThatThrowsDoesNotKeepTheOthersFromTheNews) {
  PendingSave save;
  bool told = false;
  save.when_done([](const Outcome&) { throw std::runtime_error{"no"}; });
  save.when_done([&](const Outcome&) { told = true; });
  save.finish({});
  EXPECT_TRUE(told);
}

TEST(PendingSave, TheLastWaiterMayDestroyIt) {
  for (int round = 0; round < 200; ++round) {
    auto save = std::make_shared<PendingSave>();
    std::atomic<int> called = 0;
    save->when_done([&](const Outcome&) { ++called; });
    std::thread writer{[save]() mutable {
      save->finish({});
      save.reset();
    }};
    EXPECT_TRUE(save->wait().ok());
    save.reset();
    writer.join();
    EXPECT_EQ(called, 1);
  }
}

TEST(CheckpointRef, AnUnfinishedSaveIsNoPartOfWhatItRefersTo) {
  const Checkpoint written{"/some/where", 2};
  const Checkpoint pending{"/some/where", 2, std::make_shared<PendingSave>()};
  EXPECT_EQ(written.pending(), nullptr);
  EXPECT_NE(pending.pending(), nullptr);
  EXPECT_EQ(written, pending);
}

}  // namespace
}  // namespace troupe

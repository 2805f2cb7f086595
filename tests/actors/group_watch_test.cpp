#include "beats.hpp"
#include "scenario.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/worker_group.hpp>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

/// A WorkerGroup of two ranks under virtual time, which may be silent for 2 s; the test plays its Trainer and its ranks.
class GroupWatchTest : public testing::Test {
 protected:
  static constexpr Attempt attempt = 4;

  VirtualTime time_;
  std::shared_ptr<Inbox> trainer_ = std::make_shared<Inbox>();
  std::shared_ptr<InboxPlacer::Shared> ranks_ = std::make_shared<InboxPlacer::Shared>();
  caf::actor trainer_actor_ = time_.spawn_inbox(trainer_);
  caf::actor group_;
  RankBeat beats_[2];

  void SetUp() override {
    group_ = spawn_worker_group(time_.system(), trainer_actor_, [this](const StartGroup&) { return std::make_unique<InboxPlacer>(time_, ranks_); });
    StartGroup start;
    start.attempt = attempt;
    start.function = "train";
    start.config_json = "{}";
    start.scaling.num_workers = 2;
    start.run.start_timeout = 10s;
    start.run.collective_timeout = 60s;
    start.run.step_timeout = 2s;
    start.run.stop_grace = 5s;
    send(start);
  }
  void TearDown() override {
    caf::anon_send_exit(trainer_actor_, caf::exit_reason::user_shutdown);
    for (const auto& rank : ranks_->actors) caf::anon_send_exit(rank, caf::exit_reason::user_shutdown);
    caf::anon_send_exit(group_, caf::exit_reason::kill);
    time_.settle();
    ranks_->actors.clear();
  }
  template <class Message>
  void send(Message message) {
    caf::anon_send(group_, std::move(message));
    time_.settle();
  }
  void start_ranks() {
    for (int rank = 0; rank < 2; ++rank) send(RankStarted{attempt, rank, 1});
  }
  template <class Message>
  std::optional<Message> told(int rank) {
    return ranks_->ranks[static_cast<std::size_t>(rank)]->take<Message>();
  }
  /// Time passes; ranks answer the group's questions, those in `steps` with progress.
  void live(std::chrono::milliseconds time, const std::set<int>& steps) {
    for (; time.count() > 0; time -= 50ms) {
      time_.advance(50ms, 50ms);
      for (int rank = 0; rank < 2; ++rank) {
        while (told<AskBeat>(rank)) {
          auto& beat = beats_[rank];
          if (steps.contains(rank)) {
            ++beat.progress;
            ++beat.steps;
          }
          send(Beat{attempt, rank, beat});
        }
      }
    }
  }
};

TEST_F(GroupWatchTest, LeavesRanksAloneThatGetOn) {
  start_ranks();
  live(30s, {0, 1});
  EXPECT_FALSE(told<AskStacks>(0));
  EXPECT_FALSE(told<AbortRank>(0));
  EXPECT_EQ(trainer_->count<GroupEnded>(), 0);
}

TEST_F(GroupWatchTest, WarnsOnceOfALoopThatDoesNotLookForAStop) {
  start_ranks();
  for (auto& beat : beats_) beat.stop_calls = 7;
  live(5s, {0, 1});
  send(StopGroup{attempt, true, true});
  for (int rank = 0; rank < 2; ++rank) send(StopCounted{attempt, rank, 7});
  beats_[0].stop_calls = 8;  // it waits there
  beats_[0].waiting_in = WaitingIn::StopStep;
  live(29s, {1});
  EXPECT_FALSE(trainer_->take<RunWarning>());
  live(60s, {1});
  const auto warning = trainer_->take<RunWarning>();
  ASSERT_TRUE(warning);
  EXPECT_THAT(warning->text, HasSubstr("a stop for another number or another place of ranks was asked for 30 s ago, and rank 1 has completed "));
  EXPECT_THAT(warning->text, HasSubstr("since without calling should_stop()"));
  EXPECT_FALSE(trainer_->take<RunWarning>());
  EXPECT_FALSE(told<AbortRank>(1));
}

TEST_F(GroupWatchTest, SaysWhoDidNotLookForAStopThatHadToBeForced) {
  start_ranks();
  for (auto& beat : beats_) beat.stop_calls = 7;
  live(5s, {0, 1});
  send(StopGroup{attempt});
  for (int rank = 0; rank < 2; ++rank) send(StopCounted{attempt, rank, 7});
  beats_[0].stop_calls = 8;
  beats_[0].waiting_in = WaitingIn::StopStep;
  live(6s, {1});
  EXPECT_THAT(told<AbortRank>(1)->reason, HasSubstr("ranks 0 and 1 did not stop within 5 s of the stop request; ended by force; rank 1 has completed "));
}

TEST_F(GroupWatchTest, SaysNothingOfAStopThatAllRanksHaveLookedFor) {
  start_ranks();
  live(1s, {0, 1});
  send(StopGroup{attempt, true, true});
  for (int rank = 0; rank < 2; ++rank) {
    send(StopCounted{attempt, rank, 0});
    beats_[rank].stop_calls = 1;
  }
  live(40s, {0, 1});  // a last checkpoint, say
  EXPECT_FALSE(trainer_->take<RunWarning>());
}

TEST_F(GroupWatchTest, AsksASilentRankForItsStacksThenEndsItAtOnceAndTheOthersWithGrace) {
  start_ranks();
  live(5s, {0, 1});
  beats_[0].waiting_in = WaitingIn::Collective;
  auto asked = told<AskStacks>(1);
  for (int i = 0; i < 60 && !asked; ++i) {
    live(50ms, {});
    asked = told<AskStacks>(1);
  }
  EXPECT_TRUE(asked);
  EXPECT_FALSE(told<AskStacks>(0));
  EXPECT_FALSE(told<AbortRank>(1));
  send(StacksTold{attempt, 1, "thread 7 in f()\n"});
  EXPECT_FALSE(told<AbortRank>(1)->at_once);
  EXPECT_TRUE(told<AbortRank>(1)->at_once);
  EXPECT_FALSE(told<AbortRank>(0)->at_once);
  RunError end;
  end.code = Errc::Aborted;
  end.last_lines = {"last"};
  end.pid = 7;
  send(RankLost{attempt, 1, end});
  end.last_lines = {};
  send(RankLost{attempt, 0, end});
  const auto ended = trainer_->take<GroupEnded>();
  ASSERT_TRUE(ended && ended->error);
  EXPECT_EQ(ended->error->code, Errc::DeadlinePassed);
  EXPECT_EQ(ended->error->rank, 1);
  EXPECT_EQ(ended->error->pid, 7);
  EXPECT_EQ(ended->error->step, beats_[1].steps);
  EXPECT_EQ(ended->error->last_lines, (std::vector<std::string>{"last"}));
  EXPECT_THAT(ended->error->message, HasSubstr("rank 1 made no progress for 2 s"));
  EXPECT_THAT(ended->error->details, HasSubstr("thread 7 in f()"));
  EXPECT_THAT(ended->error->details, HasSubstr("rank 0: " + std::to_string(beats_[0].steps) + " steps, 0 collectives, waiting in a collective"));
}

TEST_F(GroupWatchTest, LetsASuspectGoThatComesBackBeforeItsStacksDo) {
  start_ranks();
  live(5s, {0, 1});
  auto asked = told<AskStacks>(1);
  for (int i = 0; i < 60 && !asked; ++i) {
    live(50ms, {0});
    asked = told<AskStacks>(1);
  }
  ASSERT_TRUE(asked);
  live(300ms, {0, 1});
  send(StacksTold{attempt, 1, "late\n"});
  live(10s, {0, 1});
  EXPECT_FALSE(told<AbortRank>(1));
}

TEST_F(GroupWatchTest, WaitsForStacksOnlyAMoment) {
  start_ranks();
  live(5s, {0});
  EXPECT_TRUE(told<AskStacks>(1));
  EXPECT_TRUE(told<AbortRank>(1));
}

TEST_F(GroupWatchTest, TakesARankThatAnswersNothingForSilent) {
  start_ranks();
  for (int i = 0; i < 60; ++i) {
    time_.advance(50ms, 50ms);
    while (told<AskBeat>(0)) {
      ++beats_[0].progress;
      send(Beat{attempt, 0, beats_[0]});
    }
  }
  EXPECT_TRUE(told<AskStacks>(1));
}

TEST_F(GroupWatchTest, WatchesARankFromItsStartOn) {
  send(RankStarted{attempt, 0, 1});
  live(8s, {0});
  EXPECT_FALSE(told<AskStacks>(1));
}

TEST_F(GroupWatchTest, KnowsWhoWaitsInABarrier) {
  start_ranks();
  send(BarrierReached{attempt, 1, 0, {}});
  live(5s, {0});
  EXPECT_FALSE(told<AskStacks>(1));
  live(5s, {});
  EXPECT_TRUE(told<AskStacks>(0));
}

TEST_F(GroupWatchTest, DropsBeatsOfAnotherAttempt) {
  start_ranks();
  for (int i = 0; i < 100; ++i) {
    time_.advance(50ms, 50ms);
    ++beats_[0].progress;
    send(Beat{attempt, 0, beats_[0]});
    send(Beat{attempt - 1, 1, beats_[0]});
  }
  EXPECT_TRUE(told<AskStacks>(1));
}

TEST_F(GroupWatchTest, WarnsOfAStraggler) {
  start_ranks();
  for (int i = 0; i < 600; ++i) {  // 50 ms a step: rank 1 works all of it, rank 0 a third
    beats_[0].waited += 33ms;
    time_.advance(50ms, 50ms);
    for (int rank = 0; rank < 2; ++rank) {
      ++beats_[rank].progress;
      ++beats_[rank].steps;
      send(Beat{attempt, rank, beats_[rank]});
    }
  }
  const auto warning = trainer_->take<RunWarning>();
  ASSERT_TRUE(warning);
  EXPECT_THAT(warning->text, HasSubstr("rank 1 is slow"));
  EXPECT_EQ(trainer_->count<RunWarning>(), 0);
}

}  // namespace
}  // namespace troupe

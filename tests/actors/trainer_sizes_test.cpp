// How many ranks a run goes on with, and how much of them is started anew.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer_case.hpp"

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(TrainerTest, GoesOnWithFewerRanksWhenOneCannotBeStarted) {
  setup_.scaling = ScalingConfig{3};
  setup_.scaling.min_workers = 2;
  ranks_->fail_at_rank = 2;
  trainer_ = time_.system().spawn(trainer_behavior, setup_);
  time_.settle();
  send(RunOpened{"run", "/runs/run", contents_, {}, {}});
  for (int rank = 0; rank < 2; ++rank) send_as_rank(RankLost{1, rank, RunError{Errc::Aborted, "aborted", rank, {}, {}, {}, {}, {}, {}}});
  settle_run();
  ranks_->fail_at_rank = -1;
  time_.advance(200ms, 10ms);
  ASSERT_EQ(ranks_->ranks.size(), 2u);
  EXPECT_EQ(ranks_->ranks[0]->take<RunRank>()->world_size, 2);
}

/// Eight ranks of an elastic run, some of which cannot be started; it may fail once.
class ShrinkTest : public TrainerTest {
 protected:
  void begin_and_lose(const std::function<RankLost(int rank)>& how) {
    setup_.scaling = ScalingConfig{8};
    setup_.scaling.min_workers = 2;
    setup_.run.failure.max_failures = 1;
    begin();
    for (int rank = 0; rank < 8; ++rank) send_as_rank(how(rank));
    settle_run();
    time_.advance(200ms, 10ms);
  }
  static RunError error(Errc code) {
    RunError made;
    made.code = code;
    made.message = "no more processes";
    return made;
  }
};

TEST_F(ShrinkTest, IsOnceForAllRanksThatCouldNotBeStarted) {
  begin_and_lose([](int rank) { return RankLost{1, rank, error(rank % 2 == 1 ? Errc::StartFailed : Errc::Aborted)}; });
  EXPECT_EQ(ranks_->ranks.size(), 4u);
}

TEST_F(ShrinkTest, IsToAsManyAsHadPlaces) {
  begin_and_lose([](int rank) { return RankLost{1, rank, error(Errc::StartFailed), false, 5}; });
  EXPECT_EQ(ranks_->ranks.size(), 5u);
}

TEST_F(ShrinkTest, IsNeverBelowItsLeast) {
  begin_and_lose([](int rank) { return RankLost{1, rank, error(Errc::StartFailed)}; });
  EXPECT_EQ(ranks_->ranks.size(), 2u);
}

TEST_F(TrainerTest, RefusesAResizeThatItIsNotMadeFor) {
  begin();
  send(ResizeRun{1});
  EXPECT_THAT(listener_->take<RunWarning>()->text, HasSubstr("not elastic"));
}

TEST_F(TrainerTest, TakesASizeThatWasAskedForBeforeItsFirstAttempt) {
  setup_.scaling.num_workers = 3;
  setup_.scaling.min_workers = 1;
  trainer_ = time_.system().spawn(trainer_behavior, setup_);
  time_.settle();
  send(ResizeRun{2});
  send(RunOpened{"run", "/runs/run", contents_, {}, snapshot_});
  EXPECT_EQ(ranks_->ranks.size(), 2u);
}

/// An elastic run of two ranks that is stopped for a resize.
class ResizeTest : public TrainerTest {
 protected:
  void begin_and_resize(std::initializer_list<int> sizes) {
    setup_.scaling.num_workers = 2;
    setup_.scaling.min_workers = 1;
    begin();
    for (int rank = 0; rank < 2; ++rank) send_as_rank(RankStarted{1, rank, 1});
    for (const int size : sizes) send(ResizeRun{size});
  }
  void return_after(std::uint64_t calls) {
    for (int rank = 0; rank < 2; ++rank) send_as_rank(StopCounted{1, rank, 3});
    for (int rank = 0; rank < 2; ++rank) send_as_rank(RankDone{1, rank, calls, {}});
    settle_run();
  }
};

TEST_F(ResizeTest, GoesOnWithTheNewSizeWhenItsRanksHaveStopped) {
  begin_and_resize({1});
  return_after(4);
  take_orders();
  EXPECT_EQ(rank_order_.size(), 1u);
  EXPECT_EQ(rank_order_[0].attempt, 2u);
}

TEST_F(ResizeTest, DoesNotRepeatATrainingThatWasDoneBeforeItsRanksCouldStop) {
  begin_and_resize({1});
  return_after(3);  // no call was true
  EXPECT_TRUE(end().ok());
}

TEST_F(ResizeTest, GoesOnWhenTheResizeIsTakenBackWhileItsRanksStop) {
  begin_and_resize({1, 2});
  return_after(4);
  take_orders();
  EXPECT_EQ(rank_order_.size(), 2u);
  EXPECT_EQ(rank_order_[0].attempt, 2u);
}

TEST_F(ResizeTest, GoesOnWhenRanksHadToBeEndedByForceForAResizeThatWasTakenBack) {
  begin_and_resize({1, 2});
  time_.advance(setup_.run.stop_grace + 100ms);
  for (int rank = 0; rank < 2; ++rank) lose(rank, Errc::Aborted, "did not stop");
  settle_run();
  take_orders();
  EXPECT_EQ(rank_order_.size(), 2u);
}

TEST_F(ResizeTest, GoesOnWhenRanksHadToBeEndedByForce) {
  begin_and_resize({1});
  time_.advance(setup_.run.stop_grace + 100ms);
  for (int rank = 0; rank < 2; ++rank) lose(rank, Errc::Aborted, "did not stop");
  settle_run();
  take_orders();
  EXPECT_EQ(rank_order_.size(), 1u);
}

/// An elastic run of three ranks that went on with two, as one could not be started.
class GrowthTest : public TrainerTest {
 protected:
  void SetUp() override {
    TrainerTest::SetUp();
    setup_.scaling.num_workers = 3;
    setup_.scaling.min_workers = 1;
    setup_.scaling.grow_after = 10s;
    setup_.run.failure.max_failures = 2;  // the first one is that of the start
    setup_.run.stop_grace = 5s;
    begin();
    lose(0, Errc::StartFailed, "no more threads");
    for (int rank = 1; rank < 3; ++rank) lose(rank, Errc::Aborted, "echo");
    next_attempt(2);
  }
  void next_attempt(std::size_t ranks) {
    settle_run();
    time_.advance(1s);
    take_orders();
    ASSERT_EQ(rank_order_.size(), ranks);
    for (int rank = 0; rank < static_cast<int>(ranks); ++rank) send_as_rank(RankStarted{rank_order_[0].attempt, rank, 1});
  }
  int asked() { return std::exchange(ranks_->places_asked, 0); }
  void find(int count) {
    ranks_->found(count, "no more room");
    time_.settle();
  }
  bool are_stopping() { return ranks_->ranks[0]->take<CountForStop>().has_value(); }
  void stop_at_the_boundary(int ranks) {
    const auto attempt = rank_order_[0].attempt;
    for (int rank = 0; rank < ranks; ++rank) send_as_rank(StopCounted{attempt, rank, 3});
    for (int rank = 0; rank < ranks; ++rank) send_as_rank(RankDone{attempt, rank, 4, {}});
  }
  void lose_all(std::optional<std::uint64_t> step = {}) {
    RunError error;
    error.code = Errc::RankKilled;
    error.message = "killed";
    error.step = step;
    tell_group(0, error);
    for (int rank = 1; rank < static_cast<int>(rank_order_.size()); ++rank) lose(rank, Errc::Aborted, "echo");
  }
};

TEST_F(GrowthTest, GrowsAtAStepBoundaryOncePlacesAreThere) {
  time_.advance(8s);
  EXPECT_EQ(asked(), 0);
  time_.advance(2s);
  EXPECT_EQ(asked(), 1);
  EXPECT_FALSE(are_stopping());
  find(1);
  EXPECT_TRUE(are_stopping());
  stop_at_the_boundary(2);
  next_attempt(3);
  time_.advance(100s);
  EXPECT_EQ(asked(), 0);
}

TEST_F(GrowthTest, EndsNobodyByForceForIt) {
  time_.advance(10s);
  find(1);
  time_.advance(60s);  // far beyond stop_grace
  EXPECT_FALSE(ranks_->ranks[0]->take<AbortRank>());
  send(StopRun{"enough"});
  time_.advance(6s);
  EXPECT_TRUE(ranks_->ranks[0]->take<AbortRank>());
}

TEST_F(GrowthTest, WaitsTwiceAsLongAfterEachTryInVain) {
  time_.advance(10s);
  EXPECT_EQ(asked(), 1);
  find(0);
  EXPECT_FALSE(are_stopping());
  time_.advance(19s);
  EXPECT_EQ(asked(), 0);
  time_.advance(2s);
  EXPECT_EQ(asked(), 1);
  find(0);
  time_.advance(39s);
  EXPECT_EQ(asked(), 0);
  time_.advance(2s);
  EXPECT_EQ(asked(), 1);
}

TEST_F(GrowthTest, IsTakenBackUncountedWhenItGetsNowhere) {
  for (int growth = 0; growth < 4; ++growth) {  // more than max_failures
    SCOPED_TRACE(growth);
    time_.advance(10s * (1 << growth), 1s);
    ASSERT_EQ(asked(), 1);
    find(1);
    stop_at_the_boundary(2);
    next_attempt(3);
    lose_all();
    next_attempt(2);
    std::string told;
    while (const auto page = keeper_->take<KeepPostMortem>()) told = page->markdown;
    EXPECT_THAT(told, HasSubstr("with 3 ranks it got nowhere (killed): going on with 2 as before"));
  }
}

TEST_F(GrowthTest, CountsAFailureOfAnAttemptThatGotOn) {
  time_.advance(10s);
  find(1);
  stop_at_the_boundary(2);
  next_attempt(3);
  lose_all(7);
  next_attempt(3);
  lose_all(7);
  settle_run();
  EXPECT_TRUE(end().error);
}

TEST_F(GrowthTest, IsNotTriedAgainstTheUsersWish) {
  send(ResizeRun{2});
  time_.advance(100s, 1s);
  EXPECT_EQ(asked(), 0);
}

TEST_F(GrowthTest, TimeRunsOnOverAttempts) {
  time_.advance(6s);
  lose_all(5);
  next_attempt(2);  // takes a second, as the first one did
  time_.advance(1s);
  EXPECT_EQ(asked(), 0);
  time_.advance(2s);
  EXPECT_EQ(asked(), 1);
}

/// Two ranks, whose failures have a budget each.
class LevelsTest : public TrainerTest {
 protected:
  std::vector<bool> fresh_;
  void SetUp() override {
    TrainerTest::SetUp();
    setup_.make_placer = [this](const StartGroup& group) {
      fresh_.push_back(group.is_fresh);
      return std::make_unique<InboxPlacer>(time_, ranks_);
    };
    setup_.scaling.num_workers = 2;
    setup_.run.failure.max_failures = -1;
    setup_.run.failure.max_rank_failures = 1;
    setup_.run.failure.max_group_failures = 1;
  }
  void fail(int rank) {
    RunError error;
    error.code = Errc::RankKilled;
    error.message = "killed";
    error.step = 1;
    tell_group(rank, error);
    lose(1 - rank, Errc::Aborted, "echo");
    settle_run();
    time_.advance(1s);
  }
};

TEST_F(LevelsTest, StartsAllAnewWhenOneRankFailsAgainAndEndsWhenThatDoesNotHelp) {
  begin();
  fail(1), take_orders();
  fail(0), take_orders();
  fail(1), take_orders();  // the second time
  EXPECT_THAT(fresh_, ElementsAre(false, false, false, true));
  fail(1), take_orders();  // counts begin anew
  fail(1);
  EXPECT_EQ(fresh_.size(), 5u);
  std::string decisions;
  while (const auto event = keeper_->take<KeepEvent>()) decisions += event->json;
  EXPECT_THAT(decisions, HasSubstr("rank 1 failed 2 times, max_rank_failures is 1: all ranks are started anew"));
  EXPECT_THAT(decisions, HasSubstr("all ranks were started anew 1 times already (max_group_failures)"));
  EXPECT_TRUE(end().error);
}

TEST_F(LevelsTest, GoesOnWithoutOneWhenTheRunIsElastic) {
  setup_.scaling.min_workers = 1;
  begin();
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(rank_order_.size(), 2u) << i;
    fail(1);
    take_orders();
  }
  EXPECT_EQ(rank_order_.size(), 1u);
}

TEST_F(LevelsTest, ForgetsWhatIsOlderThanTheWindow) {
  setup_.run.failure.failure_window = 10s;
  begin();
  for (int i = 0; i < 6; ++i) {
    fail(1);
    take_orders();
    time_.advance(11s, 1s);
  }
  EXPECT_THAT(fresh_, testing::Each(false));
}

}  // namespace
}  // namespace troupe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/worker_group.hpp>

#include "scenario.hpp"

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// A WorkerGroup under virtual time; the test plays its Trainer and its ranks.
class WorkerGroupTest : public testing::Test {
 protected:
  static constexpr Attempt attempt = 4;

  VirtualTime time_;
  std::shared_ptr<Inbox> trainer_ = std::make_shared<Inbox>();
  std::shared_ptr<InboxPlacer::Shared> ranks_ = std::make_shared<InboxPlacer::Shared>();
  caf::actor trainer_actor_ = time_.spawn_inbox(trainer_);
  caf::actor group_;

  void TearDown() override {
    caf::anon_send_exit(trainer_actor_, caf::exit_reason::user_shutdown);
    for (const auto& rank : ranks_->actors) caf::anon_send_exit(rank, caf::exit_reason::user_shutdown);
    if (group_) caf::anon_send_exit(group_, caf::exit_reason::kill);
    time_.settle();
    ranks_->actors.clear();
  }

  StartGroup order(int num_workers) {
    StartGroup start;
    start.attempt = attempt;
    start.function = "train";
    start.config_json = "{}";
    start.scaling.num_workers = num_workers;
    start.run.start_timeout = 10s;
    start.run.collective_timeout = 60s;
    start.run.stop_grace = 5s;
    return start;
  }
  void begin(int num_workers) {
    group_ = spawn_worker_group(time_.system(), trainer_actor_, [this](const StartGroup&) {
      return std::make_unique<InboxPlacer>(time_, ranks_);
    });
    send(order(num_workers));
  }
  void begin_and_start(int num_workers) {
    begin(num_workers);
    for (int rank = 0; rank < num_workers; ++rank) send(RankStarted{attempt, rank, 1});
  }
  template <class Message>
  void send(Message message) {
    caf::anon_send(group_, std::move(message));
    time_.settle();
  }
  void lose(int rank, Errc code, const std::string& text) {
    RunError error;
    error.code = code;
    error.message = text;
    send(RankLost{attempt, rank, error});
  }
  template <class Message>
  std::optional<Message> told(int rank) {
    return ranks_->ranks[static_cast<std::size_t>(rank)]->take<Message>();
  }
  RunError ended_with() {
    const auto ended = trainer_->take<GroupEnded>();
    if (!ended || !ended->error) throw std::runtime_error{ended ? "the group ended well" : "the group has not ended"};
    return *ended->error;
  }
};

TEST_F(WorkerGroupTest, GivesEveryRankItsOrderAndTellsWhenAllRun) {
  begin(3);
  for (int rank = 0; rank < 3; ++rank) {
    const auto run = told<RunRank>(rank);
    ASSERT_TRUE(run);
    EXPECT_EQ(run->rank, rank);
    EXPECT_EQ(run->world_size, 3);
    EXPECT_EQ(run->attempt, attempt);
  }
  send(RankStarted{attempt, 0, 1});
  send(RankStarted{attempt, 2, 1});
  EXPECT_EQ(trainer_->count<GroupStarted>(), 0);
  send(RankStarted{attempt, 1, 1});
  EXPECT_EQ(trainer_->count<GroupStarted>(), 1);
}

/// Has no memory left once all ranks run.
class ForgetfulPlacer final : public RankPlacer {
 public:
  explicit ForgetfulPlacer(VirtualTime& time) : time_(time) {}
  caf::actor place(caf::event_based_actor* group, const RunRank&) override { return time_.spawn_inbox(std::make_shared<Inbox>(), caf::actor_cast<caf::actor>(group)); }
  void all_started() override { throw std::bad_alloc{}; }
  void find_places(int, Found) override {}
  void abort(const std::string&) noexcept override {}

 private:
  VirtualTime& time_;
};

TEST_F(WorkerGroupTest, EndsWithTheCodeOfWhatAHandlerThrows) {
  auto reason = std::make_shared<caf::error>();
  const auto trainer = time_.system().spawn([reason](caf::event_based_actor* self) -> caf::behavior {
    self->set_exit_handler([reason](const caf::exit_msg& exit) { *reason = exit.reason; });
    return {[](const GroupEnded&) {}};
  });
  group_ = spawn_worker_group(time_.system(), trainer, [this](const StartGroup&) { return std::make_unique<ForgetfulPlacer>(time_); });
  send(order(1));
  EXPECT_FALSE(*reason);
  send(RankStarted{attempt, 0, 1});
  EXPECT_EQ(time_.system().render(*reason), "OutOfMemory: std::bad_alloc");
  caf::anon_send_exit(trainer, caf::exit_reason::kill);
}

TEST_F(WorkerGroupTest, EndsWellWhenEveryRankHasReturned) {
  begin_and_start(2);
  send(RankDone{attempt, 0, 0, {"a", "b"}});
  EXPECT_EQ(trainer_->count<GroupEnded>(), 0);
  EXPECT_TRUE(ranks_->alive);
  send(RankDone{attempt, 1, 0, {"b", "c"}});
  const auto ended = trainer_->take<GroupEnded>();
  ASSERT_TRUE(ended);
  EXPECT_FALSE(ended->error);
  EXPECT_THAT(ended->unused_config_keys, ElementsAre("b"));
  EXPECT_FALSE(ranks_->alive);
}

TEST_F(WorkerGroupTest, DropsNewsOfAnotherAttempt) {
  begin_and_start(1);
  send(Reported{attempt - 1, 0, 0, {}, {}, 1});
  send(RankDone{attempt - 1, 0, 0, {}});
  send(StopGroup{attempt - 1});
  send(AbortGroup{attempt + 1, "not mine"});
  EXPECT_EQ(trainer_->count<Reported>(), 0);
  EXPECT_EQ(trainer_->count<GroupEnded>(), 0);
  EXPECT_FALSE(told<CountForStop>(0));
  EXPECT_FALSE(told<AbortRank>(0));
  send(Reported{attempt, 0, 0, {}, {}, 1});
  EXPECT_EQ(trainer_->count<Reported>(), 1);
}

TEST_F(WorkerGroupTest, NamesTheRanksThatDoNotStart) {
  begin(4);
  send(RankStarted{attempt, 0, 1});
  send(RankStarted{attempt, 2, 1});
  time_.advance(9900ms);
  EXPECT_THAT(ranks_->aborts, IsEmpty());
  time_.advance(200ms);
  EXPECT_THAT(ranks_->aborts, ElementsAre("ranks 1 and 3 did not start within 10 s"));
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_TRUE(told<AbortRank>(rank));
    lose(rank, Errc::Aborted, "aborted");
  }
  const auto error = ended_with();
  EXPECT_EQ(error.code, Errc::DeadlinePassed);
  EXPECT_EQ(error.message, "ranks 1 and 3 did not start within 10 s");
}

TEST_F(WorkerGroupTest, EndsWhenARankCannotBePlaced) {
  ranks_->fail_at_rank = 1;
  begin(3);
  EXPECT_TRUE(told<AbortRank>(0));
  lose(0, Errc::Aborted, "aborted");
  EXPECT_EQ(ended_with().code, Errc::StartFailed);
}

TEST_F(WorkerGroupTest, AbortsTheOthersWhenARankIsLostAndNamesTheFirst) {
  begin_and_start(3);
  lose(1, Errc::TrainFunctionFailed, "boom");
  EXPECT_THAT(ranks_->aborts, ElementsAre("rank 1 failed: boom"));
  EXPECT_EQ(told<AbortRank>(0)->reason, "rank 1 failed: boom");
  EXPECT_TRUE(told<AbortRank>(2));
  EXPECT_FALSE(told<AbortRank>(1));
  lose(0, Errc::Aborted, "rank 1 failed: boom");
  EXPECT_EQ(trainer_->count<GroupEnded>(), 0);
  send(RankDone{attempt, 2, 0, {}});
  const auto error = ended_with();
  EXPECT_EQ(error.code, Errc::TrainFunctionFailed);
  EXPECT_EQ(error.rank, 1);
}

TEST_F(WorkerGroupTest, DoesNotTakeAnEchoForTheCause) {
  begin_and_start(2);
  lose(0, Errc::Aborted, "rank 1 failed: boom");
  lose(1, Errc::TrainFunctionFailed, "boom");
  EXPECT_EQ(ended_with().rank, 1);
}

TEST_F(WorkerGroupTest, LetsABarrierPassWhenAllHaveCome) {
  begin_and_start(2);
  send(BarrierReached{attempt, 1, 0, "not these"});
  EXPECT_FALSE(told<BarrierPassed>(1));
  send(BarrierReached{attempt, 0, 0, "these"});
  EXPECT_EQ(told<BarrierPassed>(0)->bytes, "these");
  EXPECT_EQ(told<BarrierPassed>(1)->bytes, "these");
}

TEST_F(WorkerGroupTest, NamesTheRanksThatDoNotComeToABarrier) {
  begin_and_start(3);
  send(BarrierReached{attempt, 1, 0, ""});
  time_.advance(59'900ms);
  EXPECT_FALSE(told<BarrierPassed>(1));
  time_.advance(200ms);
  const auto failed = told<BarrierPassed>(1);
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->error, Errc::DeadlinePassed);
  EXPECT_EQ(failed->text, "barrier 0: ranks 0 and 2 did not come within 60 s");
}

TEST_F(WorkerGroupTest, GivesEachBarrierItsOwnDeadline) {
  begin_and_start(2);
  send(BarrierReached{attempt, 0, 0, ""});
  time_.advance(50s);
  send(BarrierReached{attempt, 1, 0, ""});
  EXPECT_EQ(told<BarrierPassed>(1)->error, Errc::Ok);
  (void)told<BarrierPassed>(0);
  send(BarrierReached{attempt, 0, 1, ""});
  time_.advance(50s);
  EXPECT_FALSE(told<BarrierPassed>(0));
  time_.advance(11s);
  EXPECT_EQ(told<BarrierPassed>(0)->error, Errc::DeadlinePassed);
}

TEST_F(WorkerGroupTest, FailsABarrierThatARankHasReturnedBefore) {
  begin_and_start(2);
  send(BarrierReached{attempt, 0, 0, ""});
  send(RankDone{attempt, 1, 0, {}});
  const auto failed = told<BarrierPassed>(0);
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->error, Errc::CollectiveMismatch);
  EXPECT_THAT(failed->text, HasSubstr("rank 1 has returned"));
}

TEST_F(WorkerGroupTest, FailsABarrierThatIsReachedAfterARankHasReturned) {
  begin_and_start(2);
  send(RankDone{attempt, 1, 0, {}});
  send(BarrierReached{attempt, 0, 0, ""});
  EXPECT_EQ(told<BarrierPassed>(0)->error, Errc::CollectiveMismatch);
}

TEST_F(WorkerGroupTest, TellsOnlyThoseWhoWaitThatABarrierHasFailed) {
  begin_and_start(3);
  send(RankDone{attempt, 2, 0, {}});
  send(BarrierReached{attempt, 0, 0, ""});
  EXPECT_TRUE(told<BarrierPassed>(0));
  EXPECT_FALSE(told<BarrierPassed>(1));
}

TEST_F(WorkerGroupTest, SaysThatItsRanksWereStopped) {
  begin_and_start(2);
  send(StopGroup{attempt});
  send(StopCounted{attempt, 0, 6});
  send(StopCounted{attempt, 1, 2});
  for (int rank = 0; rank < 2; ++rank) send(RankDone{attempt, rank, 7, {}});
  EXPECT_TRUE(trainer_->take<GroupEnded>().value().was_stopped);
}

TEST_F(WorkerGroupTest, SaysThatItsRanksWereDoneBeforeTheyCouldStop) {
  begin_and_start(2);
  send(StopGroup{attempt});
  send(StopCounted{attempt, 0, 6});
  send(StopCounted{attempt, 1, 2});
  for (int rank = 0; rank < 2; ++rank) send(RankDone{attempt, rank, 6, {}});
  EXPECT_FALSE(trainer_->take<GroupEnded>().value().was_stopped);
}

TEST_F(WorkerGroupTest, StopsAllRanksAfterTheMostCallsThatAnyHasPassed) {
  begin_and_start(3);
  send(StopGroup{attempt});
  for (int rank = 0; rank < 3; ++rank) EXPECT_TRUE(told<CountForStop>(rank));
  send(StopCounted{attempt, 0, 11});
  send(StopCounted{attempt, 1, 12});
  EXPECT_FALSE(told<StopAfter>(0));
  send(StopCounted{attempt, 2, 10});
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(told<StopAfter>(rank)->calls, 12u);
  for (int rank = 0; rank < 3; ++rank) send(RankDone{attempt, rank, 13, {}});
  EXPECT_FALSE(trainer_->take<GroupEnded>()->error);
}

TEST_F(WorkerGroupTest, CountsARankThatReturnsDuringAStopWithAllItsCalls) {
  begin_and_start(2);
  send(StopGroup{attempt});
  send(StopCounted{attempt, 0, 8});
  send(RankDone{attempt, 1, 10, {}});
  EXPECT_EQ(told<StopAfter>(0)->calls, 10u);
}

TEST_F(WorkerGroupTest, EndsRanksByForceThatDoNotStopInTime) {
  begin_and_start(2);
  send(StopGroup{attempt});
  send(StopCounted{attempt, 0, 1});
  send(StopCounted{attempt, 1, 1});
  send(RankDone{attempt, 1, 2, {}});
  time_.advance(5100ms);
  EXPECT_THAT(told<AbortRank>(0)->reason, HasSubstr("rank 0 did not stop within 5 s"));
  lose(0, Errc::Aborted, "aborted");
  EXPECT_EQ(ended_with().code, Errc::Cancelled);
}

TEST_F(WorkerGroupTest, EndsAtOnceWhenAborted) {
  begin_and_start(2);
  send(StopGroup{attempt});
  send(AbortGroup{attempt, "second Ctrl-C"});
  EXPECT_THAT(ranks_->aborts, ElementsAre("second Ctrl-C"));
  lose(0, Errc::Aborted, "second Ctrl-C");
  lose(1, Errc::Aborted, "second Ctrl-C");
  const auto error = ended_with();
  EXPECT_EQ(error.code, Errc::Cancelled);
  EXPECT_EQ(error.message, "second Ctrl-C");
}

TEST_F(WorkerGroupTest, WaitsTwoSecondsForRanksThatMustEndAtOnce) {
  begin_and_start(2);
  send(AbortGroup{attempt, "second Ctrl-C", true});
  EXPECT_TRUE(told<AbortRank>(0)->at_once);
  lose(0, Errc::Aborted, "second Ctrl-C");
  time_.advance(1900ms);
  EXPECT_EQ(trainer_->count<GroupEnded>(), 0);
  time_.advance(200ms);
  EXPECT_EQ(ended_with().message, "second Ctrl-C");
}

TEST_F(WorkerGroupTest, GivesUpOnRanksThatDoNotEnd) {
  begin_and_start(2);
  lose(0, Errc::TrainFunctionFailed, "boom");
  time_.advance(9900ms);
  EXPECT_EQ(trainer_->count<GroupEnded>(), 0);
  time_.advance(200ms);
  EXPECT_EQ(ended_with().message, "boom");
}

TEST_F(WorkerGroupTest, NamesARankThatDoesNotEndAfterAnAbort) {
  begin_and_start(2);
  lose(0, Errc::Aborted, "somebody");
  time_.advance(10'100ms);
  const auto error = ended_with();
  EXPECT_EQ(error.rank, 1);
  EXPECT_THAT(error.message, HasSubstr("rank 1 did not end"));
}

TEST_F(WorkerGroupTest, TreatsARankWhoseActorDiesAsLost) {
  begin_and_start(2);
  caf::anon_send_exit(ranks_->actors[1], caf::exit_reason::unhandled_exception);
  time_.settle();
  EXPECT_TRUE(told<AbortRank>(0));
  lose(0, Errc::Aborted, "aborted");
  const auto error = ended_with();
  EXPECT_EQ(error.code, Errc::Internal);
  EXPECT_EQ(error.rank, 1);
}

TEST_F(WorkerGroupTest, EndsItsRanksWhenTheTrainerDies) {
  begin_and_start(2);
  caf::anon_send_exit(trainer_actor_, caf::exit_reason::user_shutdown);
  time_.settle();
  EXPECT_TRUE(told<AbortRank>(0));
  EXPECT_TRUE(told<AbortRank>(1));
}

}  // namespace
}  // namespace troupe

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer_case.hpp"

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(TrainerTest, RunsOneAttemptToItsEnd) {
  begin();
  EXPECT_EQ(listener_->take<RunStarted>()->path, "/runs/run");
  EXPECT_EQ(rank_order_[0].attempt, 1u);
  EXPECT_EQ(rank_order_[0].run_directory, "/runs/run");
  EXPECT_FALSE(rank_order_[0].resume_checkpoint);
  send_as_rank(Reported{1, 0, 0, Metrics{{"loss", 0.5}}, {}, 1});
  EXPECT_EQ(listener_->take<ReportArrived>()->report.metrics, (Metrics{{"loss", 0.5}}));
  tell_group(0, {});
  EXPECT_EQ(keeper_->take<KeepReports>()->reports.size(), 1u);
  settle_run();
  const auto result = end();
  EXPECT_TRUE(result.ok());
  EXPECT_FALSE(result.stopped_early);
  EXPECT_EQ(result.metrics, (Metrics{{"loss", 0.5}}));
  EXPECT_EQ(result.history.size(), 1u);
}

TEST_F(TrainerTest, GoesOnWhenAListenerDoesNotKnowTheNews) {
  begin();
  // What CAF answers for an actor that has no handler for a message.
  caf::anon_send(trainer_, caf::make_error(caf::sec::unexpected_message));
  time_.settle();
  send_as_rank(Reported{1, 0, 0, Metrics{{"loss", 0.5}}, {}, 1});
  EXPECT_TRUE(listener_->take<ReportArrived>());
}

TEST_F(TrainerTest, KeepsReportsInBatchesOfFiftyMilliseconds) {
  begin();
  for (std::uint64_t i = 0; i < 3; ++i) send_as_rank(Reported{1, 0, i, {}, {}, 1});
  EXPECT_FALSE(keeper_->take<KeepReports>());
  time_.advance(50ms, 10ms);
  EXPECT_EQ(keeper_->take<KeepReports>()->reports.size(), 3u);
  send_as_rank(Reported{1, 0, 3, {}, {}, 1});
  time_.advance(50ms, 10ms);
  EXPECT_EQ(keeper_->take<KeepReports>()->reports.front().index, 3u);
  time_.advance(500ms, 10ms);
  EXPECT_FALSE(keeper_->take<KeepReports>());
}

TEST_F(TrainerTest, CommitsACheckpointWhenItsLastWriterHasReported) {
  setup_.scaling.num_workers = 2;
  begin();
  send_as_rank(Reported{1, 0, 0, {}, "/s/a", 2});
  EXPECT_FALSE(keeper_->take<CommitCheckpoint>());
  send_as_rank(Reported{1, 1, 0, {}, "/s/b", 2});
  EXPECT_EQ(keeper_->take<CommitCheckpoint>()->checkpoint.directories.size(), 2u);
  send(CheckpointKept{record(0), {}});
  EXPECT_EQ(listener_->take<CheckpointCommitted>()->checkpoint.index, 0u);
}

TEST_F(TrainerTest, EndsARunWhoseRanksReportCheckpointsAtDifferentIndices) {
  setup_.scaling.num_workers = 2;
  begin();
  send_as_rank(Reported{1, 0, 0, Metrics{{"loss", 0.5}}, {}, 1});  // rank 0 alone reports metrics
  send_as_rank(Reported{1, 0, 1, {}, "/s/a", 2});
  EXPECT_FALSE(ranks_->ranks[0]->take<AbortRank>());
  send_as_rank(Reported{1, 1, 0, {}, "/s/b", 2});
  EXPECT_THAT(ranks_->ranks[0]->take<AbortRank>()->reason,
              HasSubstr("checkpoint of report 0: 1 of 2 writers came (rank 1), but rank 0 had no checkpoint in report 0"));
  for (int rank = 0; rank < 2; ++rank) lose(rank, Errc::Aborted, "aborted");
  settle_run();
  const auto result = end();
  EXPECT_EQ(result.error->code, Errc::InvalidArgument);
}

TEST_F(TrainerTest, NamesARankThatDoesNotReportACheckpointInTime) {
  setup_.scaling.num_workers = 2;
  setup_.run.collective_timeout = 60s;
  setup_.run.start_timeout = 10min;
  begin();
  send_as_rank(Reported{1, 0, 0, {}, "/s/a", 2});
  send_as_rank(Reported{1, 1, 0, {}, "/s/b", 2, true});  // it comes; only the disk takes long
  time_.advance(30s);
  send_as_rank(Reported{1, 0, 1, {}, "/s/c", 2});
  time_.advance(59s);
  EXPECT_FALSE(ranks_->ranks[0]->take<AbortRank>());
  time_.advance(2s);
  EXPECT_THAT(ranks_->ranks[0]->take<AbortRank>()->reason,
              HasSubstr("checkpoint of report 1: 1 of 2 writers came (rank 0); rank 1 has not sent report 1 within 60000 ms"));
}

TEST_F(TrainerTest, CommitsAPendingCheckpointWhenItIsWritten) {
  setup_.scaling.num_workers = 2;
  begin();
  send_as_rank(Reported{1, 0, 0, {}, "/s/a", 2, true});
  send_as_rank(Reported{1, 1, 0, {}, "/s/a", 2, true});
  EXPECT_EQ(listener_->count<ReportArrived>(), 2);
  send_as_rank(CheckpointWritten{1, 1, 0, Errc::Ok, {}});
  EXPECT_FALSE(keeper_->take<CommitCheckpoint>());
  send_as_rank(CheckpointWritten{1, 0, 0, Errc::Ok, {}});
  EXPECT_EQ(keeper_->take<CommitCheckpoint>()->checkpoint.directories.size(), 2u);
}

TEST_F(TrainerTest, GoesOnWithoutACheckpointThatARankCouldNotWrite) {
  setup_.scaling.num_workers = 2;
  begin();
  send_as_rank(Reported{1, 0, 0, {}, "/s/a", 2, true});
  send_as_rank(Reported{1, 1, 0, {}, "/s/a", 2, true});
  send_as_rank(CheckpointWritten{1, 1, 0, Errc::StorageUnavailable, "disk full"});
  send_as_rank(CheckpointWritten{1, 0, 0, Errc::Ok, {}});
  EXPECT_EQ(listener_->take<CheckpointFailed>()->text, "rank 1: disk full");
  EXPECT_TRUE(keeper_->take<DiscardCheckpoint>());
  EXPECT_FALSE(keeper_->take<CommitCheckpoint>());
  tell_group(0, {});
  tell_group(1, {});
  settle_run();
  const auto result = end();
  EXPECT_FALSE(result.error);
  EXPECT_THAT(result.warnings, testing::ElementsAre(HasSubstr("disk full")));
  EXPECT_FALSE(result.history.front().checkpoint);
}

TEST_F(TrainerTest, GoesOnWhenACheckpointCannotBeCommitted) {
  begin();
  send_as_rank(Reported{1, 0, 0, {}, "/s/a", 1});
  send(CheckpointNotKept{0, Errc::StorageUnavailable, "disk full"});
  EXPECT_EQ(listener_->take<CheckpointFailed>()->index, 0u);
  tell_group(0, {});
  settle_run();
  EXPECT_FALSE(end().error);
}

TEST_F(TrainerTest, DropsWhatAnOlderAttemptWrote) {
  begin();
  send_as_rank(Reported{1, 0, 0, {}, "/s/a", 1, true});
  send(CheckpointWritten{7, 0, 0, Errc::Ok, {}});
  EXPECT_FALSE(keeper_->take<CommitCheckpoint>());
}

TEST_F(TrainerTest, ForgetsCheckpointsThatRetentionRemoved) {
  begin();
  send(CheckpointKept{record(0), {}});
  send(CheckpointKept{record(1), {0}});
  tell_group(0, {});
  settle_run();
  const auto result = end();
  ASSERT_EQ(result.checkpoints.size(), 1u);
  EXPECT_EQ(result.checkpoint->index, 1u);
}

TEST_F(TrainerTest, FailsWhenAWriterOfACheckpointNeverReported) {
  setup_.scaling.num_workers = 2;
  begin();
  send_as_rank(Reported{1, 0, 0, {}, "/s/a", 2});
  tell_group(0, {});
  tell_group(1, {});
  settle_run();
  EXPECT_THAT(end().error->message, HasSubstr("1 of 2 writers came (rank 0)"));
}

TEST_F(TrainerTest, GoesOnFromTheLatestCheckpointOfAnEarlierRun) {
  contents_.checkpoints = {record(3), record(4)};
  contents_.next_report_index = 6;
  contents_.next_attempt = 3;
  begin();
  EXPECT_EQ(rank_order_[0].resume_checkpoint, "/runs/run/checkpoint_000004");
  EXPECT_EQ(rank_order_[0].first_report_index, 6u);
  EXPECT_EQ(rank_order_[0].attempt, 3u);
}

TEST_F(TrainerTest, StartsAgainFromTheNewestCheckpointAtOnce) {
  setup_.run.failure.max_failures = 1;
  begin();
  send_as_rank(Reported{1, 0, 0, {}, "/s/a", 1});
  lose(0, Errc::TrainFunctionFailed, "boom");
  send(CheckpointKept{record(0), {}});
  settle_run();
  time_.advance(1ms, 1ms);
  EXPECT_EQ(listener_->count<RunStarted>(), 2);
  take_orders();
  EXPECT_EQ(rank_order_[0].attempt, 2u);
  EXPECT_EQ(rank_order_[0].resume_checkpoint, "/runs/run/checkpoint_000000");
  EXPECT_EQ(rank_order_[0].first_report_index, 1u);
  lose(0, Errc::TrainFunctionFailed, "boom again");
  settle_run();
  EXPECT_EQ(end().error->message, "boom again");
}

TEST_F(TrainerTest, PausesLongerAndLongerWhileAttemptsGetNowhereAndThenGivesUp) {
  setup_.run.failure.max_failures = -1;
  setup_.run.failure.crash_loop_limit = 3;
  begin();
  for (const auto longest : {125ms, 250ms}) {
    const int started = listener_->count<RunStarted>();
    lose(0, Errc::RankKilled, "gone");
    settle_run();
    time_.advance(longest / 2, 1ms);
    EXPECT_EQ(listener_->count<RunStarted>(), started);
    time_.advance(longest / 2 + 1ms, 1ms);
    EXPECT_EQ(listener_->count<RunStarted>(), started + 1);
    take_orders();
  }
  lose(0, Errc::RankKilled, "gone");
  settle_run();
  EXPECT_EQ(end().error->message, "gone");
}

TEST_F(TrainerTest, CountsOnlyTheFailuresOfTheWindow) {
  setup_.run.failure.max_failures = 1;
  setup_.run.failure.failure_window = 10s;
  begin();
  for (int i = 0; i < 4; ++i) {
    send_as_rank(Reported{static_cast<Attempt>(i + 1), 0, 0, {}, {}, 1});
    time_.advance(i == 3 ? 5s : 20s);
    lose(0, Errc::RankKilled, "gone");
    settle_run();
    time_.advance(1ms, 1ms);
    if (i < 3) take_orders();
  }
  EXPECT_EQ(end().error->message, "gone");
  EXPECT_EQ(listener_->count<RunStarted>(), 4);
}

TEST_F(TrainerTest, GoesOnFromTheSnapshotWhenItIsNewer) {
  setup_.run.failure.max_failures = -1;
  contents_.checkpoints = {record(3)};
  contents_.next_report_index = 4;
  snapshot_ = StateCopy{"/memory/a", 2, 4, 100};
  begin();
  EXPECT_EQ(rank_order_[0].resume_checkpoint, "/memory/a");
  EXPECT_EQ(rank_order_[0].previous_world_size, 2);
  lose(0, Errc::RankKilled, "gone");
  snapshot_->reports = 3;
  settle_run();
  time_.advance(200ms, 10ms);
  take_orders();
  EXPECT_EQ(rank_order_[0].resume_checkpoint, "/runs/run/checkpoint_000003");
}

TEST_F(TrainerTest, TellsTheJournalWhatItDecides) {
  begin();
  tell_group(0, {});
  settle_run();
  std::string events;
  while (const auto event = keeper_->take<KeepEvent>()) events += event->json;
  EXPECT_THAT(events, HasSubstr(R"("event":"attempt_began","attempt":1,"world_size":1)"));
  EXPECT_THAT(events, HasSubstr(R"("event":"attempt_ended","attempt":1,"verdict":"every rank returned")"));
  (void)end();
}

TEST_F(TrainerTest, DropsReportsOfAnotherAttempt) {
  begin();
  send(Reported{7, 0, 0, {}, "/s/a", 1});
  EXPECT_FALSE(listener_->take<ReportArrived>());
  EXPECT_FALSE(keeper_->take<CommitCheckpoint>());
}

TEST_F(TrainerTest, StopsSoftlyFirstAndHardTheSecondTime) {
  begin();
  send(StopRun{"ctrl-c"});
  EXPECT_TRUE(ranks_->ranks[0]->take<CountForStop>());
  EXPECT_FALSE(ranks_->ranks[0]->take<AbortRank>());
  send(StopRun{"ctrl-c again"});
  EXPECT_EQ(ranks_->ranks[0]->take<AbortRank>()->reason, "ctrl-c again");
  lose(0, Errc::Aborted, "ctrl-c again");
  settle_run();
  const auto result = end();
  EXPECT_TRUE(result.stopped_early);
  EXPECT_FALSE(result.error);
  EXPECT_EQ(result.exit_code(), 130);
}

TEST_F(TrainerTest, DoesNotStartAgainOnceAskedToStop) {
  setup_.run.failure.max_failures = -1;
  begin();
  lose(0, Errc::RankKilled, "killed");
  settle_run();
  send(StopRun{});
  EXPECT_TRUE(end().stopped_early);
}

TEST_F(TrainerTest, PassesOnWhatBecameOfUploads) {
  begin();
  send(CheckpointUploaded{3, "s3://bucket/run/checkpoint_000003"});
  EXPECT_EQ(listener_->take<CheckpointUploaded>()->index, 3u);
  send(RunWarning{"the upload failed"});
  EXPECT_EQ(listener_->take<RunWarning>()->text, "the upload failed");
}

TEST_F(TrainerTest, WaitsForUploadsNoLongerOnceStoppedTwice) {
  begin();
  tell_group(0, {});
  settle_run();
  send(StopRun{"ctrl-c"});
  EXPECT_FALSE(keeper_->take<GiveUpUploads>());
  send(StopRun{"ctrl-c"});
  EXPECT_TRUE(keeper_->take<GiveUpUploads>());
  (void)end();
}

TEST_F(TrainerTest, EndsWhenTheRunCannotBeOpened) {
  trainer_ = time_.system().spawn(trainer_behavior, setup_);
  time_.settle();
  send(StorageFailed{Errc::AlreadyExists, "taken"});
  const auto result = listener_->take<RunEnded>().value().result;
  EXPECT_EQ(result.error->code, Errc::AlreadyExists);
  EXPECT_EQ(result.error->message, "taken");
}

TEST_F(TrainerTest, EndsTheRanksWhenStorageFails) {
  begin();
  send(StorageFailed{Errc::StorageUnavailable, "disk full"});
  EXPECT_EQ(ranks_->ranks[0]->take<AbortRank>()->reason, "disk full");
  lose(0, Errc::Aborted, "disk full");
  settle_run();
  const auto result = end();
  EXPECT_EQ(result.error->code, Errc::StorageUnavailable);
  EXPECT_FALSE(result.stopped_early);
}

TEST_F(TrainerTest, IsNotPreemptedOnceItHasEnded) {
  begin();
  tell_group(0, {});
  settle_run();
  send(StopRun{"SIGTERM", true});
  EXPECT_EQ(end().exit_code(), 0);
}

TEST_F(TrainerTest, EndsTheRunWhenItsKeeperIsGone) {
  begin();
  caf::anon_send_exit(keeper_actor_, caf::exit_reason::user_shutdown);
  time_.settle();
  lose(0, Errc::Aborted, "the checkpoint keeper ended");
  const auto ended = listener_->take<RunEnded>();
  ASSERT_TRUE(ended);
  EXPECT_THAT(ended->result.error->message, HasSubstr("the checkpoint keeper ended"));
}

TEST_F(TrainerTest, EndsTheRunWhenItsKeeperIsGoneWhileItWaitsForIt) {
  begin();
  tell_group(0, {});
  caf::anon_send_exit(keeper_actor_, caf::exit_reason::user_shutdown);
  time_.settle();
  EXPECT_EQ(listener_->take<RunEnded>().value().result.error->code, Errc::Internal);
}

TEST_F(TrainerTest, GoesOnFromTheNewestCheckpointThoughAnOlderOneWasCommittedLater) {
  setup_.run.failure.max_failures = 1;
  begin();
  send(CheckpointKept{record(1), {}});
  send(CheckpointKept{record(0), {}});
  lose(0, Errc::TrainFunctionFailed, "boom");
  settle_run();
  time_.advance(200ms);
  take_orders();
  EXPECT_EQ(rank_order_[0].resume_checkpoint, "/runs/run/checkpoint_000001");
  tell_group(0, {});
  settle_run();
  EXPECT_EQ(end().checkpoint->index, 1u);
}

TEST_F(TrainerTest, EndsTheRunFirstWhenAskedToExit) {
  begin();
  caf::anon_send_exit(trainer_, caf::exit_reason::user_shutdown);
  time_.settle();
  EXPECT_TRUE(ranks_->ranks[0]->take<AbortRank>());
  lose(0, Errc::Aborted, "exit");
  settle_run();
  EXPECT_TRUE(end().stopped_early);
}

TEST_F(TrainerTest, ExplainsARestartAndTheEnd) {
  setup_.run.failure.max_failures = 1;
  contents_.checkpoints = {record(3)};
  contents_.next_report_index = 4;
  begin();
  RunError error;
  error.code = Errc::RankKilled;
  error.message = "killed";
  error.rank = 0;
  error.step = 12;
  tell_group(0, error);
  settle_run();
  const auto first = keeper_->take<KeepPostMortem>();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->name, "postmortem_1");
  EXPECT_THAT(first->markdown, HasSubstr("run, attempt 1: RankKilled"));
  EXPECT_THAT(first->markdown, HasSubstr("Training goes on from checkpoint_000003. 12 steps are done again."));
  EXPECT_THAT(first->markdown, HasSubstr("Another attempt: failure 1 of 1"));
  time_.advance(1s);
  take_orders();
  send_as_rank(Reported{2, 0, 4, {}, "/staged", 1});
  send(CheckpointKept{record(4), {}});
  tell_group(0, error);
  settle_run();
  const auto second = keeper_->take<KeepPostMortem>();
  ASSERT_TRUE(second);
  EXPECT_THAT(second->markdown, HasSubstr("The next start goes on from checkpoint_000004. Steps after it are done again."));
  EXPECT_THAT(second->markdown, HasSubstr("The run ends: failed 2 times"));
  const auto result = end();
  EXPECT_EQ(result.post_mortem, "postmortem_2.md");
}

TEST_F(TrainerTest, GivesUpWhenMemoryRunsOutTwice) {
  setup_.run.failure.max_failures = -1;
  begin();
  for (Attempt attempt = 1;; ++attempt) {
    lose(0, Errc::OutOfMemory, "std::bad_alloc");
    settle_run();
    if (attempt == 2) break;
    time_.advance(1s);
    take_orders();
  }
  EXPECT_EQ(end().error->code, Errc::OutOfMemory);
}

}  // namespace
}  // namespace troupe

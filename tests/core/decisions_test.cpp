#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <troupe/errors.hpp>
#include <troupe/elastic.hpp>
#include <troupe/failure_policy.hpp>
#include <troupe/failure_rules.hpp>
#include <troupe/group_rules.hpp>
#include <troupe/growth.hpp>
#include <troupe/retention.hpp>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

RunError error(Errc code, const std::string& message = "", std::optional<int> rank = {}) {
  RunError made;
  made.code = code;
  made.message = message;
  made.rank = rank;
  return made;
}

CheckpointRecord record(std::uint64_t index, std::optional<double> score) {
  CheckpointRecord made;
  made.index = index;
  if (score) made.metrics.set({"acc", *score});
  return made;
}

CheckpointConfig keep(std::optional<int> num, const char* order = "max", bool scored = true) {
  CheckpointConfig config;
  config.num_to_keep = num;
  config.checkpoint_score_order = order;
  if (scored) config.checkpoint_score_attribute = "acc";
  return config;
}

TEST(AfterGroupEnded, FinishesWhenEveryRankReturned) {
  EXPECT_EQ(after_group_ended({}, false, true, {}, {}).step, NextStep::Finish);
}

TEST(AfterGroupEnded, RetriesUntilMaxFailures) {
  const auto lost = error(Errc::RankKilled);
  EXPECT_EQ(after_group_ended(lost, false, true, {0, 0}, {2}).step, NextStep::Retry);
  EXPECT_EQ(after_group_ended(lost, false, true, {1, 0}, {2}).step, NextStep::Retry);
  const auto last = after_group_ended(lost, false, true, {2, 0}, {2});
  EXPECT_EQ(last.step, NextStep::Fail);
  EXPECT_EQ(last.reason, "failed 3 times, max_failures is 2");
}

TEST(AfterGroupEnded, NeverGivesUpWithMinusOne) {
  EXPECT_EQ(after_group_ended(error(Errc::RankKilled), false, true, {100'000, 0}, {-1}).step, NextStep::Retry);
}

TEST(AfterGroupEnded, DoesNotRetryWhatCannotGetBetterNorWhatWasStopped) {
  EXPECT_EQ(after_group_ended(error(Errc::InvalidConfig), false, true, {0, 0}, {-1}).step, NextStep::Fail);
  EXPECT_EQ(after_group_ended(error(Errc::StorageUnavailable), false, true, {0, 0}, {-1}).step, NextStep::Fail);
  EXPECT_EQ(after_group_ended(error(Errc::RankKilled), true, true, {0, 0}, {-1}).step, NextStep::Fail);
}

TEST(AfterGroupEnded, RetriesOnceWhenMemoryRanOutAndThenFailsWithAdvice) {
  const auto memory = error(Errc::OutOfMemory);
  EXPECT_EQ(after_group_ended(memory, false, true, {0, 0, 0}, {-1}).step, NextStep::Retry);
  EXPECT_EQ(after_group_ended(memory, false, true, {7, 0, 0}, {-1}).step, NextStep::Retry);
  const auto given_up = after_group_ended(memory, false, true, {1, 0, 1}, {-1});
  EXPECT_EQ(given_up.step, NextStep::Fail);
  EXPECT_THAT(given_up.reason, HasSubstr("OutOfMemory for the second time: take a smaller micro-batch"));
  EXPECT_EQ(after_group_ended(error(Errc::RankKilled), false, true, {50, 0, 50}, {-1}).step, NextStep::Retry);
}

TEST(FailureRules, HaveOneForEveryCode) {
  std::size_t place = 0;
  for (const auto& rule : failure_rules()) {
    EXPECT_EQ(static_cast<std::size_t>(rule.code), place++);
    EXPECT_FALSE(rule.why.empty());
    EXPECT_EQ(&failure_rule(rule.code), &rule);
    EXPECT_EQ(worth_retrying(rule.code), rule.retry);
  }
  EXPECT_EQ(name(static_cast<Errc>(place)), "Unknown") << "a new code needs a rule";
  EXPECT_EQ(failure_rule(static_cast<Errc>(999)).code, Errc::Internal);
}

TEST(AfterGroupEnded, StopsACrashLoop) {
  FailureConfig config{-1};
  config.crash_loop_limit = 3;
  EXPECT_EQ(after_group_ended(error(Errc::RankKilled), false, false, {1, 1}, config).step, NextStep::Retry);
  EXPECT_EQ(after_group_ended(error(Errc::RankKilled), false, true, {9, 2}, config).step, NextStep::Retry);
  const auto last = after_group_ended(error(Errc::RankKilled), false, false, {2, 2}, config);
  EXPECT_EQ(last.step, NextStep::Fail);
  EXPECT_EQ(last.reason, "3 attempts in a row failed before they got anywhere (crash_loop_limit)");
}

TEST(RetryDelay, DoublesUpToTenSecondsWhileNothingGetsOn) {
  EXPECT_EQ(retry_delay(0, 1), 0ms);
  EXPECT_EQ(retry_delay(1, 0), 100ms);
  EXPECT_EQ(retry_delay(4, 0), 800ms);
  EXPECT_EQ(retry_delay(1'000'000, 0), 10s);
  EXPECT_EQ(retry_delay(1, -1), 75ms);
  EXPECT_EQ(retry_delay(1, 5), 125ms);
}

TEST(NextWorldSize, ShrinksAnElasticRunWhoseRanksCannotBeReplaced) {
  ScalingConfig elastic{4};
  elastic.min_workers = 2;
  EXPECT_EQ(next_world_size(error(Errc::RankKilled), 4, {}, 0, elastic), 4);
  EXPECT_EQ(next_world_size(error(Errc::StartFailed), 4, {}, 1, elastic), 3);
  EXPECT_EQ(next_world_size(error(Errc::RankKilled), 3, {}, 2, elastic), 2);
  EXPECT_EQ(next_world_size(error(Errc::StartFailed), 2, {}, 5, elastic), 2);
  EXPECT_EQ(next_world_size(error(Errc::StartFailed), 4, {}, 5, ScalingConfig{4}), 4);
  // As many as had places, at once; never below min_workers, and never as many as before.
  EXPECT_EQ(next_world_size(error(Errc::StartFailed), 8, 5, 0, elastic), 5);
  EXPECT_EQ(next_world_size(error(Errc::StartFailed), 8, 0, 0, elastic), 2);
  EXPECT_EQ(next_world_size(error(Errc::StartFailed), 4, 4, 0, elastic), 3);
}

TEST(RestartLevel, GoesUpWhenALevelsBudgetIsSpent) {
  FailureConfig config{-1};
  EXPECT_EQ(restart_level(1, {1000, 1000}, config).level, RestartLevel::Rank) << "no budget unless one is given";
  config.max_rank_failures = 2;
  EXPECT_EQ(restart_level(1, {1, 0}, config).level, RestartLevel::Rank);
  EXPECT_EQ(restart_level(1, {1, 0}, config).reason, "rank 1 is replaced, failure 2 of 2 (max_rank_failures)");
  EXPECT_EQ(restart_level(1, {2, 1000}, config).level, RestartLevel::Group);
  EXPECT_EQ(restart_level(1, {2, 0}, config).reason, "rank 1 failed 3 times, max_rank_failures is 2: all ranks are started anew");
  config.max_group_failures = 1;
  EXPECT_EQ(restart_level(1, {2, 0}, config).level, RestartLevel::Group);
  EXPECT_EQ(restart_level(1, {2, 1}, config).level, RestartLevel::Run);
  EXPECT_EQ(restart_level({}, {2, 1}, config).level, RestartLevel::Rank) << "nobody's failure counts for nobody";
  config.max_rank_failures = config.max_group_failures = 0;
  EXPECT_EQ(restart_level(0, {}, config).level, RestartLevel::Run);
}

TEST(NextGrowth, IsOfElasticRunsWithFewerRanksThanWantedAndLaterAfterEachTry) {
  ScalingConfig scaling{4};
  EXPECT_FALSE(next_growth(3, 4, 0, scaling)) << "not elastic";
  scaling.min_workers = 2;
  scaling.grow_after = 1s;
  EXPECT_FALSE(next_growth(4, 4, 0, scaling));
  EXPECT_FALSE(next_growth(3, 3, 0, scaling));
  const auto first = next_growth(2, 4, 0, scaling);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->places, 2);
  EXPECT_EQ(first->after, 1s);
  EXPECT_EQ(first->reason, "2 ranks of 4 run (ScalingConfig.grow_after)");
  EXPECT_EQ(next_growth(2, 4, 3, scaling)->after, 8s);
  EXPECT_EQ(next_growth(2, 4, 1'000'000, scaling)->after, 64s);
  scaling.grow_after = 0ms;
  EXPECT_FALSE(next_growth(2, 4, 0, scaling));
}

TEST(AfterPlacesFound, TakesWhatThereIsAndNoMoreThanWanted) {
  EXPECT_EQ(after_places_found(2, 4, 0, "no memory").world_size, 2);
  EXPECT_EQ(after_places_found(2, 4, 0, "no memory").reason, "no place for another rank: no memory");
  EXPECT_EQ(after_places_found(2, 4, -1, "").world_size, 2);
  EXPECT_EQ(after_places_found(2, 4, 1, "no memory").world_size, 3);
  EXPECT_THAT(after_places_found(2, 4, 1, "no memory").reason, HasSubstr("with 3 ranks instead of 2 from the next step boundary on; not with 4: no memory"));
  EXPECT_EQ(after_places_found(2, 4, 9, "").world_size, 4);
}

TEST(AfterGrownAttemptFailed, GoesBackOnlyWhenItGotNowhere) {
  EXPECT_EQ(after_grown_attempt_failed(2, 4, false, "boom")->world_size, 2);
  EXPECT_FALSE(after_grown_attempt_failed(2, 4, true, "boom"));
  EXPECT_FALSE(after_grown_attempt_failed(0, 4, false, "boom"));
}

TEST(NewestCopy, IsTheSnapshotUnlessACheckpointWasReportedAfterIt) {
  const StateCopy snapshot{"/memory", 2, 3, 17};
  EXPECT_FALSE(newest_copy({}, {}));
  EXPECT_EQ(newest_copy({}, snapshot)->path, "/memory");
  const auto record = [](std::uint64_t index) { return CheckpointRecord{Checkpoint{"/disk"}, {}, index}; };
  EXPECT_EQ(newest_copy({record(2)}, snapshot)->path, "/memory");
  EXPECT_EQ(newest_copy({record(3)}, snapshot)->path, "/disk");
  EXPECT_EQ(newest_copy({record(0)}, {})->path, "/disk");
}

TEST(BatchPolicies, KeepOrScaleAsTheirNamesSay) {
  const BatchPlan planned{16, 1, 1e-3};
  EXPECT_EQ(keep_batch_per_rank(planned, 4, 3), planned);
  EXPECT_EQ(scale_lr_linearly(planned, 4, 2), (BatchPlan{16, 1, 5e-4}));
  EXPECT_DOUBLE_EQ(scale_lr_by_root(planned, 4, 1).lr, 5e-4);
  EXPECT_EQ(keep_global_batch(planned, 4, 2), (BatchPlan{16, 2, 1e-3}));
  EXPECT_EQ(keep_global_batch(planned, 2, 4), (BatchPlan{8, 1, 1e-3}));
  EXPECT_EQ(keep_global_batch({12, 1, 1e-3}, 3, 2), (BatchPlan{9, 2, 1e-3}));
  EXPECT_THROW((void)keep_global_batch(planned, 4, 3), Failure);
  EXPECT_THROW((void)keep_global_batch({0, 1, 1}, 4, 2), Failure);
}

TEST(FirstCause, IsTheFirstErrorThatIsNoEcho) {
  const auto cause = first_cause({error(Errc::Aborted, "echo", 0), error(Errc::RankKilled, "", 2), error(Errc::Internal)}, {});
  EXPECT_EQ(cause->rank, 2);
}

TEST(FirstCause, NamesTheRanksThatReturnedEarlyWhenThereAreOnlyEchoes) {
  const auto cause = first_cause({error(Errc::Aborted, "all_reduce 5: rank 1 left the group", 0)}, {1});
  EXPECT_EQ(cause->code, Errc::CollectiveMismatch);
  EXPECT_THAT(cause->message, HasSubstr("rank 1 returned early"));
}

TEST(BestCheckpoint, FollowsScoreAndOrder) {
  const std::vector<CheckpointRecord> records{record(0, 0.5), record(1, 0.9), record(2, 0.7)};
  EXPECT_EQ(best_checkpoint(records, keep({}, "max"))->index, 1u);
  EXPECT_EQ(best_checkpoint(records, keep({}, "min"))->index, 0u);
  EXPECT_EQ(best_checkpoint(records, keep({}, "max", false))->index, 2u);
  EXPECT_EQ(best_checkpoint({}, keep({})), nullptr);
}

TEST(BestCheckpoint, PutsAMissingScoreAndNanLastInBothOrders) {
  const std::vector<CheckpointRecord> records{record(0, std::nan("")), record(1, -1e300), record(2, 1e300), record(3, {})};
  EXPECT_EQ(best_checkpoint(records, keep({}, "max"))->index, 2u);
  EXPECT_EQ(best_checkpoint(records, keep({}, "min"))->index, 1u);
}

TEST(BestCheckpoint, IsTheNewestAmongEquals) {
  EXPECT_EQ(best_checkpoint({record(0, 0.5), record(1, 0.5)}, keep({}))->index, 1u);
}

TEST(WorstToBest, EndsWithTheBest) {
  const auto sorted = worst_to_best({record(0, 0.5), record(1, 0.9), record(2, {}), record(3, 0.7)}, keep({}, "max"));
  EXPECT_EQ(sorted.front().index, 2u);
  EXPECT_EQ(sorted.back().index, 1u);
}

TEST(GetBestCheckpoint, TakesAnyMetric) {
  Result result;
  result.checkpoints = {record(0, 0.5), record(1, 0.9), record(2, 0.7)};
  const auto metric = *keep({}, "max").checkpoint_score_attribute;
  EXPECT_EQ(result.get_best_checkpoint(metric)->index, 1u);
  EXPECT_EQ(result.get_best_checkpoint(metric, "min")->index, 0u);
  EXPECT_FALSE(result.get_best_checkpoint("another"));
  EXPECT_THROW((void)result.get_best_checkpoint(metric, "best"), Failure);
}

TEST(CheckpointsToDelete, KeepsTheBestAndAlwaysTheLatest) {
  const std::vector<CheckpointRecord> records{record(0, 0.9), record(1, 0.8), record(2, 0.7), record(3, 0.1)};
  EXPECT_THAT(checkpoints_to_delete(records, keep(2)), ElementsAre(2));
  EXPECT_THAT(checkpoints_to_delete(records, keep(1)), ElementsAre(1, 2));
  EXPECT_THAT(checkpoints_to_delete(records, keep(4)), IsEmpty());
  EXPECT_THAT(checkpoints_to_delete(records, keep({})), IsEmpty());
}

TEST(CheckpointsToDelete, DeletesTheOldestWithoutAScore) {
  const std::vector<CheckpointRecord> records{record(0, {}), record(1, {}), record(2, {})};
  EXPECT_THAT(checkpoints_to_delete(records, keep(1, "max", false)), ElementsAre(0, 1));
}

TEST(CheckpointAssembly, IsCompleteWithTheLastWriterAndTakesTheLowestRanksMetrics) {
  CheckpointAssembly assembly;
  EXPECT_FALSE(assembly.add(2, 7, Metrics{{"from", 2}}, "/b", 2));
  EXPECT_THAT(assembly.incomplete(), ElementsAre("checkpoint of report 7: 1 of 2 writers came (rank 2)"));
  const auto complete = assembly.add(0, 7, Metrics{{"from", 0}}, "/a", 2);
  ASSERT_TRUE(complete);
  EXPECT_EQ(complete->index, 7u);
  EXPECT_EQ(complete->metrics, (Metrics{{"from", 0}}));
  EXPECT_EQ(complete->directories.size(), 2u);
  EXPECT_THAT(assembly.incomplete(), IsEmpty());
}

TEST(CheckpointAssembly, RefusesDisagreementAndRepetition) {
  CheckpointAssembly assembly;
  (void)assembly.add(0, 0, {}, "/a", 3);
  EXPECT_THROW((void)assembly.add(1, 0, {}, "/b", 2), Failure);
  EXPECT_THROW((void)assembly.add(0, 0, {}, "/a", 3), Failure);
}

TEST(CheckpointAssembly, CountsAPartThatIsStillBeingWrittenOnceItIs) {
  CheckpointAssembly assembly;
  assembly.announce(0, 7, Metrics{{"from", 0}}, "/a", 2);
  EXPECT_FALSE(assembly.add(1, 7, Metrics{{"from", 1}}, "/b", 2));
  EXPECT_THROW((void)assembly.add(0, 7, {}, "/a", 2), Failure);
  EXPECT_FALSE(assembly.written(1, 7));
  const auto complete = assembly.written(0, 7);
  ASSERT_TRUE(complete);
  EXPECT_EQ(complete->metrics, (Metrics{{"from", 0}}));
  EXPECT_FALSE(assembly.written(0, 7));
}

TEST(CheckpointAssembly, SaysWhoHasReportedNoCheckpointWhereOthersHave) {
  CheckpointAssembly assembly;
  assembly.begin(3);
  EXPECT_FALSE(assembly.add(0, 0, {}, "/a", 3));
  assembly.announce(2, 0, {}, "/c", 3);
  try {
    assembly.pass(1, 0);  // a report of metrics alone
    ADD_FAILURE() << "it can never be whole";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::InvalidArgument);
    EXPECT_THAT(failure.what(), HasSubstr("checkpoint of report 0: 2 of 3 writers came (ranks 0 and 2), but rank 1 had no checkpoint in report 0"));
  }
}

TEST(CheckpointAssembly, SaysItAlsoOfARankThatIsAheadAndOfAPartThatIsBeingWritten) {
  for (const bool pending : {false, true}) {
    CheckpointAssembly assembly;
    assembly.begin(2);
    assembly.pass(1, 0);
    assembly.pass(1, 1);
    if (pending) EXPECT_THROW(assembly.announce(0, 1, {}, "/a", 2), Failure);
    else EXPECT_THROW((void)assembly.add(0, 1, {}, "/a", 2), Failure);
  }
}

TEST(CheckpointAssembly, LeavesRanksAloneThatReportMetricsBesideItsWriters) {
  CheckpointAssembly assembly;
  assembly.begin(4);
  for (const int rank : {1, 2}) assembly.pass(rank, 0);
  EXPECT_FALSE(assembly.add(0, 0, {}, "/a", 2));
  EXPECT_TRUE(assembly.add(3, 0, {}, "/b", 2));
  assembly.announce(0, 1, {}, "/a", 1);
  for (const int rank : {1, 2, 3}) assembly.pass(rank, 1);
  EXPECT_FALSE(assembly.add(0, 2, {}, "/c", 1) == std::nullopt);
  EXPECT_TRUE(assembly.written(0, 1));
  assembly.announce(1, 2, {}, "/d", 3);  // of those that are left, ranks 2 and 3 may come
  EXPECT_THROW(assembly.pass(2, 2), Failure);
}

TEST(CheckpointAssembly, NamesWhoseReportsAreOverdue) {
  CheckpointAssembly assembly;
  const CheckpointAssembly::Time begin{};
  assembly.begin(3);
  EXPECT_FALSE(assembly.oldest_incomplete());
  assembly.announce(0, 4, {}, "/a", 1, begin);  // only the disk is waited for
  EXPECT_FALSE(assembly.oldest_incomplete());
  assembly.announce(1, 5, {}, "/a", 3, begin + 3s);
  EXPECT_EQ(assembly.oldest_incomplete(), begin + 3s);
  EXPECT_EQ(assembly.overdue(begin + 2s), "");
  EXPECT_EQ(assembly.overdue(begin + 3s), "checkpoint of report 5: 1 of 3 writers came (rank 1); ranks 0 and 2 have not sent report 5");
}

TEST(CheckpointAssembly, DropsWhatComesAfterItGaveUp) {
  CheckpointAssembly assembly;
  assembly.announce(0, 7, {}, "/a", 3);
  (void)assembly.add(1, 7, {}, "/b", 3);
  EXPECT_EQ(assembly.give_up(7)->directories, (std::map<int, std::string>{{0, "/a"}, {1, "/b"}}));
  EXPECT_FALSE(assembly.give_up(7));
  EXPECT_FALSE(assembly.written(0, 7));
  EXPECT_FALSE(assembly.add(2, 7, {}, "/c", 1));
  EXPECT_THAT(assembly.incomplete(), IsEmpty());
}

TEST(StopTarget, IsTheMostCallsOnceAllAreKnown) {
  EXPECT_FALSE(stop_target(2, {{0, 5}}));
  EXPECT_EQ(stop_target(2, {{0, 5}, {1, 7}}), 7u);
}

TEST(NameRanks, ReadsAsAPersonWouldSayIt) {
  EXPECT_EQ(name_ranks({1}), "rank 1");
  EXPECT_EQ(name_ranks({1, 3}), "ranks 1 and 3");
  EXPECT_EQ(name_ranks({0, 1, 3}), "ranks 0, 1 and 3");
  std::set<int> many;
  for (int rank = 0; rank < 512; ++rank) many.insert(rank);
  EXPECT_EQ(name_ranks(many), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 504 more");
}

TEST(UnheededStop, NamesRanksThatGoOnWithoutLookingAndThoseInALongStep) {
  EXPECT_EQ(unheeded_stop({}), "");
  EXPECT_EQ(unheeded_stop({{0, {12, true}}, {1, {0, true}}}), "");
  EXPECT_EQ(unheeded_stop({{0, {12, true}}, {1, {40, false}}}),
            "rank 1 has completed 40 steps since without calling should_stop(): a loop that is to stop must call it on every rank, once a step");
  EXPECT_EQ(unheeded_stop({{0, {1, false}}, {1, {0, false}}, {2, {0, false}}}),
            "rank 0 has completed 1 step since without calling should_stop(): a loop that is to stop must call it on every rank, once a step; "
            "ranks 1 and 2 have completed no step since and not called should_stop()");
}

TEST(DidNot, SaysWhoWhatAndHowLong) {
  EXPECT_EQ(did_not({1}, "start", 60s), "rank 1 did not start within 60 s");
  EXPECT_EQ(did_not({0, 2}, "come", 1500ms), "ranks 0 and 2 did not come within 1500 ms");
}

TEST(Validate, NamesFieldValueAndRange) {
  const auto message = [](auto options) -> std::string {
    try {
      validate(options);
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::InvalidConfig);
      return failure.what();
    }
    return "accepted";
  };
  ScalingConfig scaling;
  EXPECT_EQ(message(scaling), "accepted");
  scaling.num_workers = 0;
  EXPECT_EQ(message(scaling), "ScalingConfig.num_workers is 0; it must be from 1 to 16384");
  scaling.num_workers = 16385;
  EXPECT_THAT(message(scaling), HasSubstr("16385"));
  RunConfig run;
  EXPECT_EQ(message(run), "accepted");
  run.name = "a/b";
  EXPECT_THAT(message(run), HasSubstr("'a/b'"));
  run = {};
  run.name = "..";
  EXPECT_THAT(message(run), HasSubstr("RunConfig.name"));
  run = {};
  run.checkpoint.num_to_keep = 0;
  EXPECT_THAT(message(run), HasSubstr("num_to_keep is 0"));
  run = {};
  run.checkpoint.checkpoint_score_order = "maximum";
  EXPECT_THAT(message(run), HasSubstr("'maximum'"));
  run = {};
  run.failure.max_failures = -2;
  EXPECT_THAT(message(run), HasSubstr("max_failures is -2"));
  run = {};
  run.failure.max_rank_failures = -2;
  EXPECT_THAT(message(run), HasSubstr("FailureConfig.max_rank_failures is -2"));
  scaling = {};
  scaling.grow_after = -1ms;
  EXPECT_THAT(message(scaling), HasSubstr("ScalingConfig.grow_after is -1 ms"));
  run = {};
  run.stop_grace = 0ms;
  EXPECT_THAT(message(run), HasSubstr("stop_grace"));
}

TEST(Options, OfNodesAreForRanksOnNodes) {
  const auto message = [](const ScalingConfig& scaling) -> std::string {
    try {
      validate(scaling);
    } catch (const Failure& failure) {
      return failure.what();
    }
    return "accepted";
  };
  ScalingConfig scaling;
  scaling.worker_labels = {{"zone", "x"}};
  EXPECT_EQ(message(scaling), "ScalingConfig.worker_labels is set, but ranks are threads; it is for placement = Placement::Nodes with TrainerOptions::cluster");
  scaling.placement = Placement::Nodes;
  EXPECT_EQ(message(scaling), "accepted");
  scaling.resources_per_worker.cpus = -1;
  EXPECT_THAT(message(scaling), HasSubstr("ScalingConfig.resources_per_worker"));
}

TEST(Options, SayWhatARankTakesOfItsNode) {
  ScalingConfig scaling;
  scaling.cpus_per_worker = 3;
  EXPECT_EQ(resources_of_rank(scaling).cpus, 3);
  EXPECT_EQ(resources_of_rank(scaling).gpus, 0);
  scaling.use_gpu = true;
  EXPECT_EQ(resources_of_rank(scaling).gpus, 1);
  scaling.resources_per_worker.gpus = 0.5;
  scaling.resources_per_worker.cpus = 2;
  EXPECT_EQ(resources_of_rank(scaling).gpus, 0.5);
  EXPECT_EQ(resources_of_rank(scaling).cpus, 2);
}

}  // namespace
}  // namespace troupe

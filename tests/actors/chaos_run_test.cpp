#include "fault_run.hpp"

#include <sys/wait.h>

#include <csignal>

// Injected faults strike real ranks as the plan says.

namespace troupe {
namespace {

using testing::HasSubstr;

TEST_F(FaultRun, ThrowsOnTheRankAtTheStep) {
  for (const auto placement : {Placement::Threads, Placement::Processes}) {
    options_.scaling.placement = placement;
    const auto result = run("rank=1 step=3 kind=throw");
    ASSERT_TRUE(result.error);
    EXPECT_EQ(result.error->code, Errc::TrainFunctionFailed);
    EXPECT_EQ(result.error->rank, 1);
    EXPECT_EQ(result.error->message, "chaos: throw on rank 1 at step 3");
  }
}

TEST_F(FaultRun, StrikesInTheFirstAttemptOnly) {
  options_.run.failure.max_failures = 1;
  const auto result = run("rank=1 step=3 kind=kill");
  EXPECT_FALSE(result.error) << result.error->message;
  ASSERT_EQ(result.history.size(), 2u);
  EXPECT_EQ(result.history[0].attempt, 2u);
}

TEST_F(FaultRun, EndsTheProcess) {
  const auto exited = run("rank=1 step=3 kind=exit:7");
  ASSERT_TRUE(exited.error);
  EXPECT_EQ(exited.error->exit_code, 7);
  EXPECT_EQ(exited.error->rank, 1);
  for (const auto& [kind, number] : std::map<std::string, int>{{"kill", SIGKILL}, {"segv", SIGSEGV}, {"abort", SIGABRT}}) {
    const auto result = run("rank=0 step=2 kind=" + kind);
    ASSERT_TRUE(result.error) << kind;
    EXPECT_EQ(result.error->signal, number) << kind;
    EXPECT_EQ(result.error->rank, 0) << kind;
  }
}

TEST_F(FaultRun, NamesTheWrongCollective) {
  const auto result = run("rank=1 step=3 kind=wrong-collective");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::CollectiveMismatch);
  EXPECT_THAT(result.error->message, HasSubstr("broadcast"));
  EXPECT_THAT(result.error->message, HasSubstr("gradients"));
}

TEST_F(FaultRun, SlowsTheRankDown) {
  config_.set("steps", 10);
  const auto result = run("rank=1 step=every:2 kind=slow:100ms");
  ASSERT_EQ(result.history.size(), 2u);
  EXPECT_GE(result.history[0].metrics.number("took_s"), 0.4);
}

TEST_F(FaultRun, AsksForABadNumberOnce) {
  const auto result = run("rank=1 step=3 kind=nan");
  ASSERT_EQ(result.history.size(), 2u);
  for (const auto& report : result.history) EXPECT_EQ(report.metrics.number("bad_numbers"), report.rank);
}

TEST_F(FaultRun, BreaksStorage) {
  function_ = "files";
  config_.set("steps", 10);
  auto result = run("rank=0 step=3 kind=storage-fail:2");
  ASSERT_EQ(result.history.size(), 2u);
  for (const auto& report : result.history) EXPECT_EQ(report.metrics.number("failed"), report.rank == 0 ? 2 : 0);
  result = run("rank=0 step=3 kind=storage-slow:20ms");
  ASSERT_EQ(result.history.size(), 2u);
  for (const auto& report : result.history) EXPECT_EQ(*report.metrics.number("took_s") > 0.16, report.rank == 0);
}

TEST_F(FaultRun, KillsTheDriverWhichTakesItsRanksAlong) {
  const auto pids = directory_.path() / "pids";
  config_.set("pids", pids.string());
  const auto driver = fork();
  if (driver == 0) {
    setenv("TROUPE_TEST_STORAGE", directory_.path().c_str(), 1);
    setenv("TROUPE_TEST_CONFIG", config_.json().dump().c_str(), 1);
    setenv("TROUPE_CHAOS", "rank=1 step=3 kind=driver-kill", 1);
    execl("/proc/self/exe", "chaos_run_test", "--fit", nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(driver, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  EXPECT_TRUE(are_gone(pids, 2));
}

TEST_F(FaultRun, RefusesAPlanBeforeItStarts) {
  options_.run.chaos = "rank=5 step=1 kind=kill";
  EXPECT_THROW((TorchTrainer{*session, "steps", config_, options_}), Failure);
  options_.run.chaos = "rank=1 stp=1 kind=kill";
  EXPECT_THROW((TorchTrainer{*session, "steps", config_, options_}), Failure);
}

}  // namespace
}  // namespace troupe

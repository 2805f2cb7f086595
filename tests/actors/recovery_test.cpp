#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/pending_save.hpp>
#include <troupe/torch_trainer.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "scenario.hpp"

// Runs whose ranks are processes and fail. The program is its own rank (see main below).

namespace troupe {

Session* session = nullptr;
const auto process_began = std::chrono::steady_clock::now();

namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

void add_over_ranks(TrainContext& context, float& value) {
  context.communicator().all_reduce({&value, sizeof value, DType::F32}, ReduceOp::Sum).wait().or_throw();
}

void strike(const std::string& fault) {
  if (fault == "throw") throw std::runtime_error{"boom"};
  if (fault == "assert") throw std::runtime_error{"CUDA error: device-side assert triggered"};
  if (fault == "exit") _exit(7);
  std::raise(fault == "abort" ? SIGABRT : SIGKILL);
}

/// Tells who it is, and fails on rank 1 in the attempts up to `last_fault`.
void fail_at_first(TrainContext& context, const Config& config) {
  const std::chrono::duration<double> age = std::chrono::steady_clock::now() - process_began;
  context.report({{"pid", static_cast<std::int64_t>(getpid())}, {"age_s", age.count()}});
  const auto made = context.keep<std::uint64_t>("made", [&] { return std::make_shared<std::uint64_t>(context.attempt()); });
  context.report({{"made_in", static_cast<std::int64_t>(*made)}});
  float one = 1;
  add_over_ranks(context, one);
  if (context.world_rank() == 1 && context.attempt() <= static_cast<std::uint64_t>(config.get<std::int64_t>("last_fault"))) {
    std::puts("about to fail");
    std::this_thread::sleep_for(std::chrono::milliseconds{config.get<std::int64_t>("after_ms")});
    strike(config.get<std::string>("fault"));
  }
  float sum = static_cast<float>(context.world_rank());
  add_over_ranks(context, sum);
  context.report({{"sum", static_cast<double>(sum)}});
}

/// A save of attempt 1 ends in attempt 2, on a process that lived on.
void save_late(TrainContext& context, const Config&) {
  static std::shared_ptr<PendingSave> old;
  const auto write = [&] {
    const auto directory = context.checkpoint_dir();
    std::ofstream{directory / "attempt"} << context.attempt();
    return directory;
  };
  if (context.attempt() == 1 && context.world_rank() == 0) {
    old = std::make_shared<PendingSave>();
    context.report({{"old", 1}}, Checkpoint{write(), 1, old});
  }
  float one = 1;
  add_over_ranks(context, one);
  if (context.attempt() == 1 && context.world_rank() == 1) throw std::runtime_error{"boom"};
  if (context.attempt() == 2 && context.world_rank() == 0 && old) {
    for (int again = 0; again < 3; ++again) std::exchange(old, std::make_shared<PendingSave>())->finish({});
    old.reset();
    context.report({{"new", 1}}, Checkpoint{write()});
  }
  add_over_ranks(context, one);
}

class RecoveryTest : public testing::Test {
 protected:
  TempDir directory_;
  TrainerOptions options_;
  Config config_;
  std::string function_ = "fail_at_first";
  std::chrono::steady_clock::duration took_{};

  void SetUp() override {
    options_.scaling.placement = Placement::Processes;
    options_.scaling.num_workers = 3;
    options_.run.name = "run";
    options_.run.storage_path = directory_.path();
    options_.run.failure.max_failures = 3;
    options_.run.failure.snapshot_every = 0;
    options_.run.progress = false;
    options_.run.stop_grace = 3s;
    options_.run.collective_timeout = 20s;
    set_fault("kill", 1, 0);
  }
  void set_fault(const std::string& fault, int last_attempt, int after_ms) {
    nlohmann::ordered_json json;
    json["fault"] = fault;
    json["last_fault"] = last_attempt;
    json["after_ms"] = after_ms;
    config_ = Config(json);
  }
  Result fit() {
    const auto before = std::chrono::steady_clock::now();
    auto result = TorchTrainer{*session, function_, config_, options_}.fit();
    took_ = std::chrono::steady_clock::now() - before;
    EXPECT_TRUE(waitpid(-1, nullptr, WNOHANG) < 0 && errno == ECHILD) << "a process is left";
    return result;
  }
  /// By attempt and rank.
  static std::map<std::pair<std::uint64_t, int>, std::int64_t> pids(const Result& result) {
    std::map<std::pair<std::uint64_t, int>, std::int64_t> found;
    for (const auto& report : result.history) {
      if (const auto pid = report.metrics.number("pid")) found[{report.attempt, report.rank}] = static_cast<std::int64_t>(*pid);
    }
    return found;
  }
  std::string journal() const {
    std::ifstream file{directory_.path() / "run" / "journal.jsonl"};
    return {std::istreambuf_iterator<char>{file}, {}};
  }
};

TEST_F(RecoveryTest, ReplacesOnlyTheProcessThatWasKilled) {
  const auto result = fit();
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_EQ(result.metrics, (Metrics{{"sum", 3.0}}));
  auto pid = pids(result);
  EXPECT_EQ((pid[{2, 0}]), (pid[{1, 0}]));
  EXPECT_EQ((pid[{2, 2}]), (pid[{1, 2}]));
  EXPECT_NE((pid[{2, 1}]), (pid[{1, 1}]));
  EXPECT_THAT(journal(), HasSubstr("SIGKILL"));
  for (const auto& report : result.history) {
    if (const auto made = report.metrics.number("made_in")) {
      EXPECT_EQ(*made, report.rank == 1 ? static_cast<double>(report.attempt) : 1);
    }
  }
}

TEST_F(RecoveryTest, KeepsEveryProcessWhenOneThrows) {
  set_fault("throw", 3, 0);
  const auto result = fit();
  ASSERT_TRUE(result.ok()) << result.error->message;
  auto pid = pids(result);
  for (std::uint64_t attempt = 2; attempt <= 4; ++attempt) {
    for (int rank = 0; rank < 3; ++rank) EXPECT_EQ((pid[{attempt, rank}]), (pid[{1, rank}])) << attempt << " " << rank;
  }
}

TEST_F(RecoveryTest, TellsTheLastWordsOfARankWhoseProcessLivesOn) {
  set_fault("throw", 9, 0);
  const auto result = fit();
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->message, "boom");
  EXPECT_EQ(result.error->rank, 1);
  EXPECT_THAT(result.error->last_lines, testing::ElementsAre("about to fail"));
}

TEST_F(RecoveryTest, TakesASpareProcess) {
  options_.scaling.spare_workers = 1;
  set_fault("kill", 2, 700);
  const auto result = fit();
  ASSERT_TRUE(result.ok()) << result.error->message;
  auto pid = pids(result);
  EXPECT_EQ((pid[{3, 0}]), (pid[{1, 0}]));
  EXPECT_NE((pid[{2, 1}]), (pid[{1, 1}]));
  EXPECT_NE((pid[{3, 1}]), (pid[{2, 1}]));
  for (const auto& report : result.history) {
    const auto age = report.rank == 1 && report.attempt > 1 ? report.metrics.number("age_s") : std::nullopt;
    if (age) {
      EXPECT_GT(*age, 0.3);
    }
  }
}

TEST_F(RecoveryTest, ReplacesRanksThatExitOrAbort) {
  for (const char* fault : {"exit", "abort"}) {
    SCOPED_TRACE(fault);
    options_.run.name = fault;
    set_fault(fault, 1, 0);
    const auto result = fit();
    ASSERT_TRUE(result.ok()) << result.error->message;
    EXPECT_EQ(result.history.back().attempt, 2u);
  }
}

TEST_F(RecoveryTest, ReplacesAProcessWhoseGpuContextIsLost) {
  set_fault("assert", 1, 0);
  const auto result = fit();
  ASSERT_TRUE(result.ok()) << result.error->message;
  auto pid = pids(result);
  EXPECT_EQ((pid[{2, 0}]), (pid[{1, 0}]));
  EXPECT_NE((pid[{2, 1}]), (pid[{1, 1}]));
  EXPECT_THAT(journal(), HasSubstr("DeviceFailed"));
}

TEST_F(RecoveryTest, DoesNotGoOnInAProgramWhoseGpuContextIsLost) {
  options_.scaling.placement = Placement::Threads;
  set_fault("assert", 1, 0);
  const auto result = fit();
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::DeviceFailed);
  EXPECT_THAT(journal(), HasSubstr("Placement::Processes replaces the process"));
}

TEST_F(RecoveryTest, StartsEveryProcessAnewWhenOneRankFailsTooOften) {
  options_.run.failure.max_rank_failures = 1;
  set_fault("throw", 2, 0);
  const auto result = fit();
  ASSERT_TRUE(result.ok()) << result.error->message;
  auto pid = pids(result);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ((pid[{2, rank}]), (pid[{1, rank}])) << rank;
    EXPECT_NE((pid[{3, rank}]), (pid[{2, rank}])) << rank;
  }
  for (const auto& report : result.history) {
    if (const auto made = report.metrics.number("made_in"); made && report.attempt == 3) {
      EXPECT_EQ(*made, 3);
    }
  }
}

TEST_F(RecoveryTest, CountsWhatAnOldAttemptSaidOnlyOnceAndCommitsNothingOfIt) {
  function_ = "save_late";
  const auto result = fit();
  ASSERT_TRUE(result.ok()) << result.error->message;
  ASSERT_EQ(result.checkpoints.size(), 1u);
  std::ifstream file{result.checkpoints[0].checkpoint.path() / "attempt"};
  int attempt = 0;
  file >> attempt;
  EXPECT_EQ(attempt, 2);
  EXPECT_EQ(std::ranges::count_if(result.history, [](const auto& report) { return report.metrics.number("old").has_value(); }), 1);
  EXPECT_EQ(std::ranges::count_if(result.history, [](const auto& report) { return report.metrics.number("new").has_value(); }), 1);
}

TEST_F(RecoveryTest, GivesUpAfterMaxFailures) {
  set_fault("kill", 9, 0);
  options_.run.failure.max_failures = 2;
  const auto result = fit();
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::RankKilled);
  EXPECT_EQ(result.history.back().attempt, 3u);
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, {{"fail_at_first", troupe::fail_at_first}, {"save_late", troupe::save_late}}};
  troupe::session = &session;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

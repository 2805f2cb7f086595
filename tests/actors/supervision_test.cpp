#include "fault_run.hpp"

#include <troupe/chaos.hpp>
#include <troupe/post_mortem.hpp>

#include <nlohmann/json.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <sstream>

// Real ranks that crash, hang, stop and run out of memory: who it was and why is in the result and in the post-mortem.

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::AnyOf;
using testing::HasSubstr;
using testing::Not;
using Clock = std::chrono::steady_clock;

class Supervision : public FaultRun {
 protected:
  static std::string read(const std::filesystem::path& path) {
    std::ostringstream text;
    text << std::ifstream{path}.rdbuf();
    return text.str();
  }
  static nlohmann::ordered_json json_of(const Result& result, int attempt) {
    return nlohmann::ordered_json::parse(read(result.path / ("postmortem_" + std::to_string(attempt) + ".json")));
  }
};

TEST_F(Supervision, TellsWhereARankCrashed) {
  const auto result = run("rank=1 step=3 kind=segv");
  ASSERT_TRUE(result.error);
  const auto& error = *result.error;
  EXPECT_EQ(error.code, Errc::RankKilled);
  EXPECT_EQ(error.rank, 1);
  EXPECT_EQ(error.step, 3u);
  EXPECT_TRUE(error.pid);
  EXPECT_THAT(error.message, HasSubstr("signal 11 (SIGSEGV): nothing is mapped there, at address 0x2a0"));
  EXPECT_THAT(error.details, HasSubstr("'rank 1' (the training thread), after step 3"));
  EXPECT_THAT(error.details, HasSubstr("troupe::RankChaos::"));  // a function of the backtrace, by name
  EXPECT_THAT(error.details, HasSubstr("collective #3 all_reduce of gradients"));
  EXPECT_THAT(error.details, HasSubstr("injected fault at step #3 segv"));
}

TEST_F(Supervision, TellsWhyItAborted) {
  const auto result = run("rank=1 step=3 kind=abort");
  ASSERT_TRUE(result.error);
  EXPECT_THAT(result.error->message, HasSubstr("signal 6 (SIGABRT): abort() was called"));
  EXPECT_THAT(result.error->details, HasSubstr("troupe::RankChaos::"));
}

TEST_F(Supervision, TellsWhatEndedInStdTerminate) {
  function_ = "terminate";
  const auto result = run("");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->signal, SIGABRT);
  EXPECT_THAT(result.error->message, HasSubstr("std::terminate: thrown on a thread of its own"));
}

TEST_F(Supervision, TellsAStackOverflow) {
  function_ = "overflow";
  const auto result = run("");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->signal, SIGSEGV);
  EXPECT_THAT(result.error->details, HasSubstr("fall("));
}

TEST_F(Supervision, KeepsTheEventsOfARankThatWasKilled) {
  const auto result = run("rank=1 step=3 kind=kill");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->step, 3u);
  EXPECT_THAT(result.error->details, HasSubstr("step completed #3"));
  EXPECT_THAT(result.error->details, HasSubstr("injected fault at step #3 kill"));
}

TEST_F(Supervision, KeepsTheLast1000Events) {
  config_.set("steps", 2000);
  config_.set("step_ms", 0);
  const auto result = run("rank=1 step=1500 kind=exit");
  ASSERT_TRUE(result.error);
  const auto& details = result.error->details;
  EXPECT_THAT(details, HasSubstr("step completed #1500"));
  EXPECT_THAT(details, HasSubstr("collective #1010 "));
  EXPECT_GE(std::count(details.begin(), details.end(), '\n'), 1000);
}

TEST_F(Supervision, CallsBadAllocOutOfMemoryAndTriesOnce) {
  options_.run.failure.max_failures = 5;
  const auto result = run("rank=1 step=2 kind=oom:64M attempt=*");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::OutOfMemory);
  EXPECT_EQ(result.error->rank, 1);
  EXPECT_FALSE(std::filesystem::exists(result.path / "postmortem_3.md"));
  EXPECT_TRUE(json_of(result, 1)["goes_on"]);
  EXPECT_FALSE(json_of(result, 2)["goes_on"]);
  EXPECT_THAT(json_of(result, 2)["decision"], HasSubstr("OutOfMemory for the second time: take a smaller micro-batch"));
}

/// A control group with little memory, where this user may make one.
class SmallGroup {
 public:
  explicit SmallGroup(const std::string& bytes) {
    const auto name = "troupe-test-" + std::to_string(getpid());
    for (const auto& [root, limit] : {std::pair{"/sys/fs/cgroup/memory/", "memory.limit_in_bytes"}, std::pair{"/sys/fs/cgroup/", "memory.max"}}) {
      std::error_code refused;
      path_ = root + name;
      std::ofstream{root + std::string("cgroup.subtree_control")} << "+memory" << std::flush;  // version 2: groups have limits once the root says so
      if (!std::filesystem::create_directory(path_, refused) || refused) continue;
      if (std::ofstream file{path_ / limit}; file << bytes << std::flush) {
        std::ofstream{path_ / "memory.memsw.limit_in_bytes"} << bytes;  // no way out through swap
        std::ofstream{path_ / "memory.swap.max"} << 0;
        return;
      }
      std::filesystem::remove(path_, refused);
    }
    path_.clear();
  }
  ~SmallGroup() {
    std::error_code ignored;
    for (int i = 0; i < 100 && !path_.empty() && !std::filesystem::remove(path_, ignored); ++i) std::this_thread::sleep_for(10ms);
  }
  [[nodiscard]] bool exists() const { return !path_.empty(); }
  /// The calling process.
  void join() const { std::ofstream{path_ / "cgroup.procs"} << getpid() << std::flush; }

 private:
  std::filesystem::path path_;
};

TEST_F(Supervision, TellsAKillForMemoryFromAnotherKill) {
  const SmallGroup group{"268435456"};
  if (!group.exists()) GTEST_SKIP() << "this user may make no control group with a memory limit, neither of version 1 nor of version 2";
  const auto driver = fork();
  if (driver == 0) {
    group.join();
    setenv("TROUPE_TEST_STORAGE", directory_.path().c_str(), 1);
    setenv("TROUPE_TEST_CONFIG", config_.json().dump().c_str(), 1);
    setenv("TROUPE_CHAOS", "rank=1 step=3 kind=oom:4G", 1);
    execl("/proc/self/exe", "supervision_test", "--fit", nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(driver, &status, 0);
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
  const auto result = Result::from_path(directory_.path() / "run");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::OutOfMemory);
  EXPECT_EQ(result.error->rank, 1);
  EXPECT_EQ(result.error->signal, SIGKILL);
  EXPECT_THAT(result.error->message, HasSubstr("probably by the kernel, because memory ran out: oom_kill in /sys/fs/cgroup"));
}

/// Ranks that go on for a long time but for the one that a fault holds up.
class Silence : public Supervision {
 protected:
  Clock::time_point began_;

  void SetUp() override {
    config_.set("steps", 1'000'000);
    options_.run.step_timeout = 1s;
    options_.run.stop_grace = 2s;
  }
  Result timed(const std::string& chaos) {
    began_ = Clock::now();
    return run(chaos);
  }
  /// The fault is due at step 20 of 1 ms; a start takes well under a second.
  void expect_resolved_in_time() const { EXPECT_LT(Clock::now() - began_, options_.run.step_timeout + 2s + 2s); }
};

TEST_F(Silence, EndsARankThatHangsAndShowsItsStack) {
  const auto result = timed("rank=1 step=20 kind=hang");
  ASSERT_TRUE(result.error);
  const auto& error = *result.error;
  EXPECT_EQ(error.code, Errc::DeadlinePassed);
  EXPECT_EQ(error.rank, 1);
  EXPECT_EQ(error.step, 20u);
  EXPECT_THAT(error.message, HasSubstr("rank 1 made no progress for 1 s (RunConfig.step_timeout) after step 20"));
  EXPECT_THAT(error.details, HasSubstr("(the training thread)"));
  EXPECT_THAT(error.details, HasSubstr("troupe::RankChaos::"));
  EXPECT_THAT(error.details, HasSubstr("rank 0: 20 steps"));
  EXPECT_THAT(error.details, HasSubstr("waiting in a collective"));
  EXPECT_THAT(error.last_lines, testing::Contains(HasSubstr("chaos: hang")));
  expect_resolved_in_time();
}

TEST_F(Silence, EndsAStoppedProcessAndSaysThatItIsStopped) {
  const auto result = timed("rank=1 step=20 kind=stop");
  ASSERT_TRUE(result.error);
  const auto& error = *result.error;
  EXPECT_EQ(error.code, Errc::DeadlinePassed);
  EXPECT_EQ(error.rank, 1);
  EXPECT_THAT(error.message, HasSubstr("its process is stopped"));
  EXPECT_THAT(error.details, HasSubstr("is stopped (SIGSTOP)"));
  expect_resolved_in_time();
}

TEST_F(Silence, EndsAThreadThatHangsWithTheRun) {
  options_.scaling.placement = Placement::Threads;
  options_.run.stop_grace = 200ms;
  const auto result = timed("rank=1 step=20 kind=hang");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::DeadlinePassed);
  EXPECT_EQ(result.error->rank, 1);
  EXPECT_THAT(result.error->message, HasSubstr("made no progress for 1 s"));
  EXPECT_THAT(result.error->details, HasSubstr("(the training thread)"));
  EXPECT_THAT(result.error->details, HasSubstr("troupe::RankChaos::"));
  expect_resolved_in_time();
}

TEST_F(Silence, GoesOnWithAnotherProcess) {
  options_.run.failure.max_failures = 1;
  config_.set("steps", 60);
  const auto result = timed("rank=1 step=20 kind=stop");
  EXPECT_FALSE(result.error) << result.error->message;
  ASSERT_EQ(result.history.size(), 2u);
  EXPECT_EQ(result.history[0].attempt, 2u);
}

TEST_F(Silence, RaisesNoFalseAlarmForStepsOfHalfASecond) {
  config_.set("steps", 12);
  const auto result = timed("rank=1 step=every:2 kind=slow:500ms");
  EXPECT_FALSE(result.error) << result.error->message;
}

TEST_F(Supervision, PutsTheCollectivesVerdictIntoTheError) {
  options_.run.collective_timeout = 500ms;
  options_.run.stop_grace = 300ms;
  const auto result = run("rank=1 step=3 kind=hang");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::DeadlinePassed);
  EXPECT_THAT(result.error->message, HasSubstr("rank 1 did not come within"));
  EXPECT_THAT(result.error->details, HasSubstr("collective ended #4 DeadlinePassed"));
}

TEST_F(Supervision, LeavesAPageForARestartAndForTheEnd) {
  options_.run.failure.max_failures = 1;
  const auto result = run("rank=1 step=3 kind=kill; rank=0 step=2 kind=exit:9 attempt=2");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.post_mortem, "postmortem_2.md");
  const auto first = read(result.path / "postmortem_1.md");
  EXPECT_THAT(first, HasSubstr("attempt 1: RankKilled"));
  EXPECT_THAT(first, HasSubstr("rank 1 (process "));
  EXPECT_THAT(first, HasSubstr("after step 3"));
  EXPECT_THAT(first, HasSubstr("Training goes on from the beginning: nothing had been kept. 3 steps are done again."));
  EXPECT_THAT(first, HasSubstr("Another attempt: failure 1 of 1"));
  const auto second = json_of(result, 2);
  EXPECT_EQ(second["error"]["exit_code"], 9);
  EXPECT_EQ(second["error"]["rank"], 0);
  EXPECT_EQ(second["lost_steps"], 2);
  EXPECT_THAT(second["warnings"].dump(), Not(HasSubstr("could not be written")));
  EXPECT_EQ(Result::from_path(result.path).post_mortem, "postmortem_2.md");
}

TEST_F(Supervision, LeavesNoPageWhenAllWentWell) {
  const auto result = run("");
  EXPECT_FALSE(result.error);
  EXPECT_EQ(result.post_mortem, "");
  EXPECT_FALSE(std::filesystem::exists(result.path / "postmortem_1.md"));
}

TEST_F(Supervision, NamesAStraggler) {
  config_.set("steps", 1'500);
  config_.set("step_ms", 5);
  const auto result = run("rank=1 step=every:1 kind=slow:15ms");
  EXPECT_FALSE(result.error);
  EXPECT_THAT(result.warnings, testing::Contains(HasSubstr("rank 1 is slow")));
  EXPECT_THAT(result.warnings, Not(testing::Contains(HasSubstr("rank 0 is slow"))));
}

/// One kind of fault, on any rank at any of many steps: it is told for what it is, and the next attempt gets through.
class TwentySeeds : public Supervision, public testing::WithParamInterface<std::pair<std::string, Errc>> {};

TEST_P(TwentySeeds, AreAllSurvivedAndExplained) {
  const auto& [kind, code] = GetParam();
  options_.run.failure.max_failures = 1;
  options_.run.step_timeout = 400ms;
  options_.scaling.num_workers = 3;
  config_.set("steps", 40);
  for (int seed = 0; seed < 20; ++seed) {
    const auto result = run("rank=any step=1..39 kind=" + kind + "; seed=" + std::to_string(seed));
    ASSERT_FALSE(result.error) << "seed " << seed << ": " << result.error->message;
    EXPECT_EQ(result.history.size(), 3u);
    const auto page = json_of(result, 1);
    EXPECT_EQ(page["error"]["code"], static_cast<int>(code)) << "seed " << seed << ": " << page["cause"];
    EXPECT_TRUE(page["error"].contains("step")) << "seed " << seed;
    const auto line = parse_chaos("rank=any step=1..39 kind=" + kind + "; seed=" + std::to_string(seed)).preview(3, 1)[0];
    if (code == Errc::CollectiveMismatch) continue;  // whoever came last says it
    EXPECT_THAT(line, HasSubstr("rank " + std::to_string(page["error"]["rank"].get<int>()) + ", step " + std::to_string(page["error"]["step"].get<int>()) + ":")) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TwentySeeds,
                         testing::Values(std::pair{"throw", Errc::TrainFunctionFailed}, std::pair{"exit:3", Errc::RankExited}, std::pair{"kill", Errc::RankKilled},
                                         std::pair{"segv", Errc::RankKilled}, std::pair{"abort", Errc::RankKilled}, std::pair{"oom:64M", Errc::OutOfMemory},
                                         std::pair{"hang", Errc::DeadlinePassed}, std::pair{"stop", Errc::DeadlinePassed},
                                         std::pair{"wrong-collective", Errc::CollectiveMismatch}),
                         [](const auto& kind) {
                           std::string name;
                           for (const char letter : kind.param.first) {
                             if (std::isalpha(static_cast<unsigned char>(letter))) name += letter;
                           }
                           return name;
                         });

}  // namespace
}  // namespace troupe

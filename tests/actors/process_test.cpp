#include "process_cases.hpp"
#include "scenario.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/worker_group.hpp>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <cmath>
#include <fstream>
#include <limits>

// The program is its own rank (see main below).

namespace troupe {

Session* session = nullptr;

namespace {

using namespace std::chrono_literals;
using testing::Contains;
using testing::HasSubstr;

struct Outcomes {
  std::vector<Reported> reports;
  std::vector<RankStarted> started;
  std::optional<GroupEnded> ended;
};

/// A worker group of processes whose trainer is the test.
class ProcessTest : public testing::Test {
 protected:
  caf::actor_system_config config_;
  std::unique_ptr<caf::actor_system> system_ = make_system();
  TempDir directory_;
  StartGroup order_;

  std::unique_ptr<caf::actor_system> make_system() {
    config_.set("scheduler.max-threads", 2);
    register_types(config_);
    return std::make_unique<caf::actor_system>(config_);
  }
  void SetUp() override {
    order_.attempt = 3;
    order_.config_json = "{}";
    order_.run_name = "test";
    order_.run_directory = directory_.path().string();
    order_.scaling.placement = Placement::Processes;
    order_.run.start_timeout = 20s;
    order_.run.collective_timeout = 20s;
    order_.run.stop_grace = 2s;
  }

  /// Runs until the group has ended; `react` sees every RankStarted's and Reported's group first.
  Outcomes run(const std::string& function, int num_workers,
               const std::function<void(caf::scoped_actor&, const caf::actor&)>& when_started = {}) {
    order_.function = function;
    order_.scaling.num_workers = num_workers;
    caf::scoped_actor self{*system_};
    Outcomes got;
    const auto group = spawn_worker_group(*system_, self, [](const StartGroup& start) {
      return make_process_placer(*session, start);
    });
    self->send(group, order_);
    bool late = false;
    while (!got.ended && !late) {
      self->receive([&](const GroupStarted&) { if (when_started) when_started(self, group); },
                    [&](const Reported& news) { got.reports.push_back(news); }, [](const Progressed&) {},
                    [&](const GroupEnded& news) { got.ended = news; }, caf::after(30s) >> [&] { late = true; });
    }
    EXPECT_TRUE(got.ended) << "the group did not end";
    if (!got.ended) got.ended.emplace();
    return got;
  }
};

std::string text_of(const Outcomes& got) { return got.ended->error ? got.ended->error->message : "no error"; }

bool has_no_children() { return waitpid(-1, nullptr, WNOHANG) < 0 && errno == ECHILD; }

TEST_F(ProcessTest, RunsTheTrainFunctionInEveryProcess) {
  for (const int num_workers : {1, 2, 4}) {
    const auto got = run("sum", num_workers);
    EXPECT_FALSE(got.ended->error) << text_of(got);
    ASSERT_EQ(got.reports.size(), static_cast<std::size_t>(num_workers));
    for (const auto& report : got.reports) {
      EXPECT_EQ(report.metrics.number("sum"), num_workers * (num_workers + 1) / 2.0);
      EXPECT_NE(report.metrics.number("pid"), getpid());
    }
    EXPECT_TRUE(has_no_children());
  }
}

TEST_F(ProcessTest, TellsWhatOneRankThrew) {
  const auto got = run("throw_on_1", 2);
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::TrainFunctionFailed);
  EXPECT_EQ(got.ended->error->rank, 1);
  EXPECT_EQ(got.ended->error->message, "boom");
  EXPECT_THAT(got.ended->error->last_lines, Contains("about to throw"));
  EXPECT_TRUE(has_no_children());
}

TEST_F(ProcessTest, TellsTheExitCodeOfARankThatExits) {
  const auto got = run("exit_3_on_1", 2);
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::RankExited);
  EXPECT_EQ(got.ended->error->rank, 1);
  EXPECT_EQ(got.ended->error->exit_code, 3);
  EXPECT_TRUE(has_no_children());
}

TEST_F(ProcessTest, TakesAnExitWithoutAnErrorCodeForAnErrorToo) {
  const auto got = run("exit_0", 1);
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::RankExited);
  EXPECT_EQ(got.ended->error->exit_code, 0);
}

TEST_F(ProcessTest, TellsTheSignalOfARankThatIsKilledWhileItsPeerWaits) {
  const auto got = run("kill_on_1", 2);
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::RankKilled) << text_of(got);
  EXPECT_EQ(got.ended->error->rank, 1);
  EXPECT_EQ(got.ended->error->signal, SIGKILL);
  EXPECT_THAT(got.ended->error->message, HasSubstr("SIGKILL"));
  EXPECT_TRUE(has_no_children());
}

TEST_F(ProcessTest, KeepsTheLastLinesOfARankThatAborts) {
  const auto got = run("abort", 1);
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->signal, SIGABRT);
  EXPECT_THAT(got.ended->error->last_lines, Contains("last words"));
  EXPECT_EQ(got.ended->error->last_lines.size(), 20u);
}

TEST_F(ProcessTest, NamesTheTrainFunctionsThereAreWhenOneIsUnknown) {
  const auto got = run("smu", 1);
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::NotFound);
  EXPECT_THAT(got.ended->error->message, HasSubstr("sum"));
}

TEST_F(ProcessTest, StopsEveryRankAtTheSameStep) {
  const auto got = run("step_until_stopped", 2, [](auto& self, const auto& group) {
    std::this_thread::sleep_for(50ms);
    self->send(group, StopGroup{3});
  });
  EXPECT_FALSE(got.ended->error) << text_of(got);
  ASSERT_EQ(got.reports.size(), 2u);
  EXPECT_EQ(got.reports[0].metrics, got.reports[1].metrics);
}

TEST_F(ProcessTest, KillsARankThatDoesNotEndAfterAnAbort) {
  order_.run.stop_grace = 200ms;
  const auto before = std::chrono::steady_clock::now();
  const auto got = run("sleep", 2, [](auto& self, const auto& group) { self->send(group, AbortGroup{3, "enough"}); });
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::Cancelled) << text_of(got);
  EXPECT_LT(std::chrono::steady_clock::now() - before, 10s);
  EXPECT_TRUE(has_no_children());
}

TEST_F(ProcessTest, KillsRanksAtOnceWhenTold) {
  order_.run.stop_grace = 60s;
  const auto before = std::chrono::steady_clock::now();
  const auto got = run("sleep", 2, [](auto& self, const auto& group) {
    self->send(group, AbortGroup{3, "enough"});
    self->send(group, AbortGroup{3, "really", true});
  });
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::Cancelled) << text_of(got);
  EXPECT_LT(std::chrono::steady_clock::now() - before, 5s);
  EXPECT_TRUE(has_no_children());
}

TEST_F(ProcessTest, BringsMetricsBitByBit) {
  const auto got = run("report_odd_numbers", 1);
  ASSERT_EQ(got.reports.size(), 1u);
  EXPECT_TRUE(std::isnan(*got.reports[0].metrics.number("nan")));
  EXPECT_EQ(*got.reports[0].metrics.number("inf"), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::signbit(*got.reports[0].metrics.number("minus_zero")));
}

TEST_F(ProcessTest, BringsTenThousandReportsInOrder) {
  const auto got = run("report_often", 1);
  ASSERT_EQ(got.reports.size(), 10'000u) << text_of(got);
  for (std::size_t i = 0; i < got.reports.size(); ++i) ASSERT_EQ(got.reports[i].index, i);
}

TEST_F(ProcessTest, NamesTypeAndSizeOfAReportThatIsTooLong) {
  const auto got = run("report_too_much", 1);
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::ProtocolError);
  EXPECT_THAT(got.ended->error->message, HasSubstr("Reported of 9"));
}

TEST_F(ProcessTest, GivesRanksTheirEnvironmentAndNoOtherDescriptors) {
  order_.run.worker_env["TROUPE_TEST_VALUE"] = "from the driver";
  const int careless = open("/proc/self/status", O_RDONLY);  // a library's, without close-on-exec
  const int high = fcntl(careless, F_DUPFD, 20);
  const auto got = run("look_around", 1);
  close(careless);
  close(high);
  ASSERT_EQ(got.reports.size(), 1u) << text_of(got);
  const auto& metrics = got.reports[0].metrics;
  EXPECT_EQ(std::get<std::string>(*metrics.find("value")), "from the driver");
  EXPECT_EQ(std::get<std::string>(*metrics.find("own_variable")), "");
  EXPECT_EQ(std::get<std::string>(*metrics.find("leaked")), "");
}

TEST_F(ProcessTest, NamesTheLimitOnDescriptors) {
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit low{32, before.rlim_max};
  setrlimit(RLIMIT_NOFILE, &low);
  const auto got = run("sum", 4);
  setrlimit(RLIMIT_NOFILE, &before);
  ASSERT_TRUE(got.ended->error);
  EXPECT_EQ(got.ended->error->code, Errc::StartFailed);
  EXPECT_THAT(got.ended->error->message, HasSubstr("RLIMIT_NOFILE = 32"));
}

/// This program once more, as a driver that can be killed; its ranks append their process numbers to a file.
class DriverTest : public testing::Test {
 protected:
  TempDir directory_;
  pid_t driver_ = -1;
  std::vector<pid_t> ranks_;

  void start(const char* mode, const char* function) {
    const auto list = directory_.path() / "pids";
    driver_ = fork();
    if (driver_ == 0) {
      setenv("TROUPE_TEST_PIDS", list.c_str(), 1);
      setenv("TROUPE_TEST_STORAGE", directory_.path().c_str(), 1);
      setenv("TROUPE_TEST_FUNCTION", function, 1);
      setpgid(0, 0);
      execl("/proc/self/exe", "process_test", mode, nullptr);
      _exit(127);
    }
    for (int i = 0; i < 2000 && ranks_.size() < 2; ++i) {
      std::this_thread::sleep_for(10ms);
      ranks_.clear();
      std::ifstream file{list};
      for (pid_t pid; file >> pid;) ranks_.push_back(pid);
    }
    ASSERT_EQ(ranks_.size(), 2u);
  }
  /// As a terminal's Ctrl-C: to every process of its foreground group.
  void interrupt() const { kill(-driver_, SIGINT); }
  int wait_for_driver() const {
    int status = 0;
    waitpid(driver_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  static bool is_alive(pid_t pid) {
    std::ifstream stat{"/proc/" + std::to_string(pid) + "/stat"};
    std::string number, program, state;
    return stat >> number >> program >> state && state != "Z" && state != "X";
  }
  bool are_gone_within(std::chrono::milliseconds limit) const {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (is_alive(ranks_[0]) || is_alive(ranks_[1])) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(10ms);
    }
    return true;
  }
};

TEST_F(DriverTest, LeavesNoRankWhenItIsKilled) {
  start("--drive", "sleep");
  kill(driver_, SIGKILL);
  EXPECT_EQ(wait_for_driver(), -SIGKILL);
  EXPECT_TRUE(are_gone_within(2s));
}

TEST_F(DriverTest, StopsAtTheSameStepWhenItIsInterrupted) {
  start("--fit", "step_until_stopped");
  interrupt();
  EXPECT_EQ(wait_for_driver(), 130);
  EXPECT_TRUE(are_gone_within(0ms));
}

TEST_F(DriverTest, EndsAtOnceWhenItIsInterruptedTwice) {
  start("--fit", "sleep");
  interrupt();
  std::this_thread::sleep_for(100ms);
  interrupt();
  const auto before = std::chrono::steady_clock::now();
  EXPECT_NE(wait_for_driver(), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - before, 10s);
  EXPECT_TRUE(are_gone_within(0ms));
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, troupe::process_cases()};
  troupe::session = &session;
  if (argc > 1 && std::string(argv[1]) == "--drive") return troupe::drive(session);
  if (argc > 1 && std::string(argv[1]) == "--fit") return troupe::fit(session);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

// Runs on a cluster's nodes, which are processes of this program on loopback.
#include "cluster_run.hpp"

namespace troupe {

Session* session = nullptr;

namespace {

using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;

std::int64_t integer(const ReportRecord& report, const char* metric) { return std::get<std::int64_t>(*report.metrics.find(metric)); }

TEST_F(ClusterRun, RunsRanksOnTwoNodesThatMeet) {
  open_with({"a", "b"});
  const auto result = run("sum", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  ASSERT_EQ(result.history.size(), 4u);
  std::map<std::string, int> ranks_on;
  for (const auto& report : result.history) {
    EXPECT_EQ(report.metrics.number("sum"), 10.0);
    EXPECT_EQ(integer(report, "node_rank"), report.rank / 2);
    EXPECT_EQ(integer(report, "local_rank"), report.rank % 2);
    EXPECT_EQ(integer(report, "local_world_size"), 2);
    ++ranks_on[name_of_agent(integer(report, "agent"))];
  }
  EXPECT_EQ(ranks_on, (std::map<std::string, int>{{"a", 2}, {"b", 2}}));
}

TEST_F(ClusterRun, KeepsAGroupOnOneNodeWhereItFits) {
  open_with({"a", "b"}, 4);
  const auto result = run("sum", 3);
  ASSERT_TRUE(result.ok()) << text_of(result);
  for (const auto& report : result.history) {
    EXPECT_EQ(report.metrics.number("sum"), 6.0);
    EXPECT_EQ(integer(report, "local_world_size"), 3);
  }
}

TEST_F(ClusterRun, ReplacesTheRanksOfANodeThatIsKilled) {
  open_with({"a", "b", "c"});
  options_.run.failure.max_failures = 1;
  config_ = Config{{"steps", 100}};
  const auto result = run("steps", 4, [&] { kill_agent("b"); });
  ASSERT_TRUE(result.ok()) << text_of(result);
  const auto page = file(result.path / result.post_mortem);
  EXPECT_THAT(page, AllOf(HasSubstr("NodeLost"), HasSubstr("node 'b' was not heard of")));
  for (const auto& report : result.history) {
    if (report.attempt == 2) {
      EXPECT_NE(name_of_agent(integer(report, "agent")), "none");
    }
  }
}

TEST_F(ClusterRun, SeesAStoppedNodeWithinTwoSeconds) {
  open_with({"a", "b", "c"});
  options_.run.failure.max_failures = 1;
  config_ = Config{{"steps", 300}};
  Clock::time_point stopped, away;
  const auto result = run("steps", 4, [&] {
    stopped = Clock::now();
    kill(agents_.at("b"), SIGSTOP);
    while (Clock::now() < stopped + 10s) {
      for (const auto& node : cluster_->status().nodes) {
        if (node.name == "b" && node.state == NodeState::Away) return void(away = Clock::now());
      }
      std::this_thread::sleep_for(10ms);
    }
  });
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_LE(away - stopped, 2s);
  EXPECT_GE(away - stopped, 1s);
  kill(agents_.at("b"), SIGCONT);
}

TEST_F(ClusterRun, GoesOnWithFewerRanksWhenThereIsNoRoom) {
  open_with({"a", "b"});
  options_.scaling.min_workers = 2;
  options_.run.failure.max_failures = 3;
  config_ = Config{{"steps", 100}};
  const auto result = run("steps", 4, [&] { kill_agent("b"); });
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(integer(result.history.back(), "ranks"), 2);
}

TEST_F(ClusterRun, MovesRanksFromANodeThatDrains) {
  open_with({"a", "b", "c"});
  config_ = Config{{"steps", 100}};
  const auto on_b = [&] {
    for (const auto& node : cluster_->status().nodes) {
      if (node.name == "b") return node.ranks.size();
    }
    return std::size_t{99};
  };
  std::size_t before = 0;
  const auto result = run("steps", 4, [&] {
    before = on_b();
    cluster_->drain("b");
  });
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(before, 2u);
  EXPECT_EQ(result.post_mortem, "");
  EXPECT_EQ(result.history.back().attempt, 2u);
  for (const auto& report : result.history) {
    if (report.attempt == 2) {
      EXPECT_NE(name_of_agent(integer(report, "agent")), "b");
    }
  }
}

TEST_F(ClusterRun, RefusesToDrainANodeThatIsNotThere) {
  open();
  EXPECT_THROW(cluster_->drain("nobody"), Failure);
}

TEST_F(ClusterRun, SaysWhatIsMissingWhenNoPlaceCameInTime) {
  open_with({"a"});
  options_.run.start_timeout = 1s;
  const auto result = run("sum", 3);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error->code, Errc::StartFailed);
  EXPECT_THAT(result.error->message, AllOf(HasSubstr("2 of 3"), HasSubstr("node a")));
}

TEST_F(ClusterRun, WaitsForANodeThatJoinsLater) {
  open();
  std::thread later{[&] {
    std::this_thread::sleep_for(500ms);
    start_agent("a", 2);
  }};
  const auto result = run("sum", 2);
  later.join();
  ASSERT_TRUE(result.ok()) << text_of(result);
}

TEST_F(ClusterRun, ServesTwoRunsAtOnce) {
  open_with({"a", "b"});
  Result other;
  auto options = options_;
  options.run.name = "other";
  options.scaling.num_workers = 2;
  std::thread beside{[&] { other = TorchTrainer{*session, "steps", config_, options}.fit(); }};
  const auto result = run("steps", 2);
  beside.join();
  EXPECT_TRUE(result.ok()) << text_of(result);
  EXPECT_TRUE(other.ok()) << text_of(other);
  EXPECT_EQ(cluster_->status().runs.size(), 2u);
  for (const auto& node : cluster_->status().nodes) EXPECT_EQ(node.free, node.total) << node.name;
}

TEST_F(ClusterRun, JoinsByCertificates) {
  const auto ca = directory_.path() / "ca", certificates = directory_.path() / "certificates";
  make_cluster_ca(ca, "test", std::chrono::hours{24});
  issue_certificate(ca, ClusterRole::Head, "head", std::chrono::hours{24}, certificates);
  for (const auto* name : {"a", "b"}) issue_certificate(ca, ClusterRole::Node, name, std::chrono::hours{24}, certificates);
  security_ = {certificates, "head", false};
  setenv("TROUPE_TEST_CERTIFICATES", certificates.c_str(), 1);
  open_with({"a", "b"});
  unsetenv("TROUPE_TEST_CERTIFICATES");
  start_agent("stranger", 2);
  const auto result = run("sum", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_FALSE(cluster_->wait_for_nodes(3, 300ms));
}

TEST_F(ClusterRun, TellsWhereARankThatHangsIsAt) {
  open_with({"a", "b"});
  options_.run.step_timeout = 1s;
  const auto result = run("stop_on_1", 4);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error->code, Errc::DeadlinePassed) << text_of(result);
  EXPECT_EQ(result.error->rank, 1);
  EXPECT_EQ(result.error->step, 2u);
  EXPECT_THAT(result.error->details, HasSubstr("is stopped (SIGSTOP)"));
}

TEST_F(ClusterRun, BringsTheCrashRecordOfARank) {
  open_with({"a", "b"});
  const auto result = run("crash_on_1", 4);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error->code, Errc::RankKilled) << text_of(result);
  EXPECT_EQ(result.error->rank, 1);
  EXPECT_EQ(result.error->signal, SIGSEGV);
  EXPECT_EQ(result.error->node, "a");
  EXPECT_THAT(result.error->details, AllOf(HasSubstr("then_on_1"), HasSubstr("last events of rank 1")));
}

TEST_F(ClusterRun, BringsTheLastLinesOfARankThatThrew) {
  open_with({"a", "b"});
  const auto result = run("throw_on_1", 4);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error->message, "boom");
  EXPECT_EQ(result.error->node, "a");
  EXPECT_THAT(result.error->last_lines, testing::Contains("about to throw"));
}

TEST_F(ClusterRun, MovesRanksFromANodeThatLeaves) {
  open_with({"a", "b"});
  NodeOptions leaving;
  leaving.join = cluster_->address();
  leaving.name = "0";  // before the others
  leaving.resources.cpus = 2;
  const auto agent = NodeAgent::start(leaving);
  ASSERT_TRUE(cluster_->wait_for_nodes(3, 10s));
  config_ = Config{{"steps", 100}};
  const auto result = run("steps", 4, [&] {
    agent->leave(10s);
    EXPECT_TRUE(agent->wait().ok());
  });
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(result.post_mortem, "");
  EXPECT_EQ(result.history.back().attempt, 2u);
}

TEST_F(ClusterRun, SaysThatStorageIsNotShared) {
  options_.run.node_storage = NodeStorage::Shared;
  open_with({"a"});
  setenv("TROUPE_TEST_HIDE", directory_.path().c_str(), 1);
  start_agent("b", 2);
  unsetenv("TROUPE_TEST_HIDE");
  if (!cluster_->wait_for_nodes(2, 3s)) GTEST_SKIP() << "no mount namespace may be made here";
  const auto result = run("sum", 4);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error->code, Errc::StartFailed);
  EXPECT_THAT(result.error->message, AllOf(HasSubstr("node b does not see " + result.path.string()), HasSubstr("RunConfig.storage_path")));
}

TEST_F(ClusterRun, NeedsAClusterForRanksOnNodes) {
  options_.cluster.reset();
  EXPECT_THROW((TorchTrainer{*session, "sum", config_, options_}), Failure);
}

/// A head that is another process, which can be killed.
class HeadProcessRun : public ClusterRun {
 protected:
  static std::string free_port() {
    const auto probe = Cluster::open({"127.0.0.1:0", {}});
    return probe->address().substr(probe->address().rfind(':') + 1);
  }
  std::vector<pid_t> ranks(std::size_t count) const {
    std::vector<pid_t> found;
    for (int look = 0; look < 2'000 && found.size() < count; ++look) {
      found.clear();
      std::ifstream stream{directory_.path() / "pids"};
      for (pid_t pid; stream >> pid;) found.push_back(pid);
      std::this_thread::sleep_for(10ms);
    }
    return found;
  }
  static bool are_gone(const std::vector<pid_t>& pids, std::chrono::milliseconds limit) {
    const auto deadline = Clock::now() + limit;
    for (const auto pid : pids) {
      while (kill(pid, 0) == 0) {
        if (Clock::now() > deadline) return false;
        std::this_thread::sleep_for(10ms);
      }
    }
    return true;
  }
  int code_of(pid_t pid) const {
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
};

TEST_F(HeadProcessRun, EndsItsRanksAndJoinsTheNextHeadWhenOneDies) {
  const auto at = free_port();
  start_agent("a", 2, "127.0.0.1:" + at);
  start_agent("b", 2, "127.0.0.1:" + at);
  const auto head = start_program({"--drive", at, "steps", "4", directory_.path()});
  const auto pids = ranks(4);
  ASSERT_EQ(pids.size(), 4u);
  kill(head, SIGKILL);
  waitpid(head, nullptr, 0);
  EXPECT_TRUE(are_gone(pids, 5'500ms));
  const auto next = start_program({"--drive", at, "sum", "4", (directory_.path() / "next").string()});
  EXPECT_EQ(code_of(next), 0);
}

TEST_F(HeadProcessRun, PassesOnWhatRanksPrint) {
  const auto at = free_port();
  start_agent("a", 2, "127.0.0.1:" + at);
  start_agent("b", 2, "127.0.0.1:" + at);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const auto head = start_program({"--drive", at, "sum", "4", directory_.path()}, "/proc/self/exe", ends[1]);
  close(ends[1]);
  std::string output;
  char bytes[4096];
  for (ssize_t got; (got = read(ends[0], bytes, sizeof bytes)) > 0;) output.append(bytes, static_cast<std::size_t>(got));
  close(ends[0]);
  EXPECT_EQ(code_of(head), 0) << output;
  for (int rank = 0; rank < 4; ++rank) {
    const auto number = std::to_string(rank);
    EXPECT_THAT(output, HasSubstr("[rank " + number + "] hello from rank " + number + "\n"));
  }
}

TEST_F(HeadProcessRun, RefusesAProgramOfAnotherBuild) {
  const auto at = free_port();
  start_agent("a", 2, "127.0.0.1:" + at);
  start_agent("b", 2, "127.0.0.1:" + at);
  const auto program = directory_.path() / "program", other = directory_.path() / "other";
  std::filesystem::copy_file("/proc/self/exe", program);
  std::ofstream{other} << "another build";
  setenv("TROUPE_TEST_REPLACE", other.c_str(), 1);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const auto head = start_program({"--drive", at, "sum", "4", directory_.path()}, program, ends[1]);
  unsetenv("TROUPE_TEST_REPLACE");
  close(ends[1]);
  std::string output;
  char bytes[4096];
  for (ssize_t got; (got = read(ends[0], bytes, sizeof bytes)) > 0;) output.append(bytes, static_cast<std::size_t>(got));
  close(ends[0]);
  EXPECT_EQ(code_of(head), 1);
  EXPECT_THAT(output, AllOf(HasSubstr("StartFailed: node "), HasSubstr(program.string() + " is another build")));
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, troupe::cluster_cases()};
  troupe::session = &session;
  int code = 0;
  if (troupe::runs_as_other(session, argc, argv, code)) return code;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

#pragma once

#include "cluster_cases.hpp"
#include "scenario.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/cluster.hpp>
#include <troupe/node.hpp>
#include <troupe/torch_trainer.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <map>
#include <thread>

namespace troupe {

extern Session* session;

/// A head of the test's, and nodes that are processes of this program on loopback.
class ClusterRun : public testing::Test {
 protected:
  using Clock = std::chrono::steady_clock;

  TempDir directory_;
  std::shared_ptr<Cluster> cluster_;
  std::map<std::string, pid_t> agents_;
  Config config_{{"steps", 20}};
  TrainerOptions options_;

  void SetUp() override {
    using namespace std::chrono_literals;
    options_.scaling.placement = Placement::Nodes;
    options_.run.progress = false;
    options_.run.storage_path = directory_.path();
    options_.run.name = "run";
    options_.run.start_timeout = 20s;
    options_.run.collective_timeout = 20s;
    options_.run.stop_grace = 2s;
  }
  void TearDown() override {
    options_.cluster.reset();
    cluster_.reset();
    for (const auto& [name, pid] : agents_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }

  ClusterSecurity security_;

  void open() { options_.cluster = cluster_ = Cluster::open({"127.0.0.1:0", security_, std::chrono::milliseconds{1'500}}); }
  std::string port() const { return cluster_->address().substr(cluster_->address().rfind(':') + 1); }

  static pid_t start_program(const std::vector<std::string>& arguments, const std::string& program = "/proc/self/exe", int output = -1) {
    std::vector<char*> argv{const_cast<char*>("cluster_test")};
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const pid_t pid = fork();
    if (pid != 0) return pid;
    if (output >= 0) dup2(output, STDOUT_FILENO), dup2(output, STDERR_FILENO);
    execv(program.c_str(), argv.data());
    _exit(127);
  }
  void start_agent(const std::string& name, int cpus, const std::string& to = {}) {
    agents_[name] = start_program({"--agent", to.empty() ? cluster_->address() : to, name, std::to_string(cpus)});
  }
  /// Agents of these names, with so many processors each.
  void open_with(const std::vector<std::string>& names, int cpus = 2) {
    open();
    for (const auto& name : names) start_agent(name, cpus);
    ASSERT_TRUE(cluster_->wait_for_nodes(static_cast<int>(names.size()), std::chrono::seconds{20}));
  }
  void kill_agent(const std::string& name) {
    kill(agents_.at(name), SIGKILL);
    waitpid(agents_.at(name), nullptr, 0);
    agents_.erase(name);
  }
  std::string name_of_agent(std::int64_t pid) const {
    for (const auto& [name, agent] : agents_) {
      if (agent == pid) return name;
    }
    return "none";
  }

  /// @param on_first called once, on another thread, after every rank's first report of the run
  Result run(const std::string& function, int ranks, const std::function<void()>& on_first = {}) {
    options_.scaling.num_workers = ranks;
    std::thread reaction;
    int reports = 0;
    options_.on_report = [&](const ReportRecord&) {
      if (++reports == ranks && on_first) reaction = std::thread{on_first};
    };
    auto result = TorchTrainer{*session, function, config_, options_}.fit();
    if (reaction.joinable()) reaction.join();
    return result;
  }
  static std::string text_of(const Result& result) {
    return result.error ? std::string(name(result.error->code)) + ": " + result.error->message : "no error";
  }
  static std::string file(const std::filesystem::path& path) {
    std::ifstream stream{path};
    return {std::istreambuf_iterator<char>{stream}, {}};
  }
};

}  // namespace troupe

#include "child_processes.hpp"
#include "commands.hpp"
#include "launch_plan.hpp"
#include "node_arguments.hpp"
#include "node_door.hpp"

#include <troupe/errors.hpp>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>

namespace troupe::tools {

namespace {

using namespace std::chrono_literals;

constexpr auto agents_grace = 3s;
constexpr auto program_listens_within = 60s;
constexpr auto first_task_within = 10s;  // from a further task's start on

pid_t the_program = 0;

// The program ends its runs in order; agents follow it.
extern "C" void pass_on(int signal) {
  if (the_program > 0) kill(the_program, signal);
}

void say(const std::string& text) { std::fprintf(stderr, "troupe launch: %s\n", text.c_str()); }

/// A token of this launch alone, so that other users of this host cannot join; gone with it.
class LocalToken {
 public:
  LocalToken() {
    std::string path = (std::filesystem::temp_directory_path() / "troupe-launch-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) throw Failure{Errc::StorageUnavailable, "cannot make a directory in " + std::filesystem::temp_directory_path().string()};
    directory_ = path;
    const auto file = directory_ / "token";
    std::ofstream{file}.close();
    std::filesystem::permissions(file, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    std::random_device random;
    std::ofstream out{file};
    for (int i = 0; i < 8; ++i) {
      char word[9];
      (void)std::snprintf(word, sizeof word, "%08x", random());
      out << word;
    }
    if (!out.flush()) throw Failure{Errc::StorageUnavailable, "cannot write " + file.string()};
  }
  ~LocalToken() {
    std::error_code error;
    std::filesystem::remove_all(directory_, error);
  }
  LocalToken(const LocalToken&) = delete;
  LocalToken& operator=(const LocalToken&) = delete;
  [[nodiscard]] const std::filesystem::path& directory() const { return directory_; }

 private:
  std::filesystem::path directory_;
};

/// The address that the program tells when it listens; empty when it ended, or said nothing for too long.
std::string read_address(int fd) {
  std::string text;
  const auto deadline = std::chrono::steady_clock::now() + program_listens_within;
  while (!text.ends_with('\n')) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd waiting{fd, POLLIN, 0};
    if (left <= 0 || poll(&waiting, 1, static_cast<int>(left)) < 0) return {};
    char byte = 0;
    if (read(fd, &byte, 1) != 1) return {};
    text += byte;
  }
  text.pop_back();
  return text;
}

/// Until the program ends: its code.
int wait_for_program(ChildProcesses& children, pid_t program) {
  while (!children.is_empty()) {
    const auto ended = children.wait();
    if (ended.pid == program) {
      children.end_all(agents_grace);
      return ended.code;
    }
    if (ended.pid > 0) say(ended.name + " has ended with code " + std::to_string(ended.code) + (ended.code == 0 ? "" : "; its ranks go elsewhere"));
  }
  return 1;
}

std::vector<std::string> agent_words(const LaunchPlan& plan, const std::string& join, const std::string& name) {
  std::vector<std::string> words{own_program(), "node", "--join", join};
  if (!name.empty()) words.insert(words.end(), {"--name", name});
  words.insert(words.end(), plan.agent_options.begin(), plan.agent_options.end());
  return words;
}

int be_head(const LaunchPlan& plan, const std::vector<std::string>& words) {
  int tell[2];
  if (pipe2(tell, O_CLOEXEC) != 0) throw Failure{Errc::StartFailed, "cannot make a pipe"};
  auto environment = plan.program_environment;
  environment["TROUPE_CLUSTER_TELL"] = std::to_string(tell[1]);
  ChildProcesses children;
  the_program = children.start({.name = words.front(), .words = words, .environment = environment, .keep_fd = tell[1]});
  close(tell[1]);
  const auto program = the_program;
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, pass_on);
  const auto address = read_address(tell[0]);
  close(tell[0]);
  if (address.empty()) {
    say(words.front() + " does not listen for nodes: does it call troupe::cluster_from_environment()? It runs without");
  } else {
    const auto join = plan.is_one_host ? address : plan.head;
    for (const auto& name : plan.own_agents) (void)children.start({.name = "node " + name, .words = agent_words(plan, join, name), .own_group = true});
  }
  return wait_for_program(children, program);
}

int be_agent(const LaunchPlan& plan) {
  ChildProcesses children;
  the_program = children.start({.name = "node " + plan.own_agents.front(), .words = agent_words(plan, plan.head, plan.own_agents.front())});
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, pass_on);
  return wait_for_program(children, the_program);
}

int run(const LaunchOptions& o) {
  if (o.program.empty()) throw WrongUse{"say which program, after the options: troupe launch --nodes 3 build/examples/cluster"};
  auto plan = plan_launch(o);
  if (plan.role == LaunchRole::Idle) {
    say("this task waits for its node's first one, which works for all: one per node is enough, as srun --ntasks-per-node=1");
    return wait_at_door(plan.node_key, first_task_within);
  }
  NodeDoor door{plan.node_key};
  const auto told = [&](int code) {
    door.tell(code);
    return code;
  };
  if (plan.role == LaunchRole::Agent) return told(be_agent(plan));
  std::unique_ptr<LocalToken> token;
  if (plan.is_one_host && o.certs.empty()) {
    token = std::make_unique<LocalToken>();
    use_certificates(plan, token->directory().string());
  }
  return told(be_head(plan, o.program));
}

}  // namespace

Command add_launch(CLI::App& app) {
  auto options = std::make_shared<LaunchOptions>();
  auto& o = *options;
  auto* command = app.add_subcommand("launch", "Runs a program as the head of a cluster: of local nodes, or of those that srun, mpirun, torchrun or a host list name");
  command->footer("On a laptop:          troupe launch --nodes 3 PROGRAM …\n"
                  "In a Slurm job:       srun --ntasks-per-node=1 troupe launch --certs DIR PROGRAM …\n"
                  "With Open MPI:        mpirun --map-by ppr:1:node troupe launch --head HOST:PORT --certs DIR PROGRAM …\n"
                  "On each of some hosts: troupe launch --hosts a,b,c --certs DIR PROGRAM …\n"
                  "The program calls troupe::cluster_from_environment(). docs/clusters.md says more.");
  command->add_option("--nodes", o.nodes, "so many nodes on this host; with --node-rank: on as many hosts")->check(CLI::Range(1, 65'536));
  command->add_option("--hosts", o.hosts, "the hosts, as a,b or node[01-16]; run the same command on each");
  command->add_option("--node-rank", o.node_rank, "which host of them this is, from 0 on [found by name]")->check(CLI::NonNegativeNumber);
  command->add_option("--accelerate", o.accelerate, "a file of `accelerate config`: num_machines, machine_rank, main_process_ip, main_process_port");
  command->add_option("--head", o.head, "HOST:PORT of the first host [its name, port 7077]");
  command->add_option("--wait", o.wait, "seconds to wait for all nodes")->capture_default_str()->check(CLI::PositiveNumber);
  add_resources(*command, o.node);
  command->add_option("--certs", o.certs, "directory with ca.pem, token, and certificates of a head and of nodes")->envname("TROUPE_CERTS");
  command->add_flag("--insecure", o.insecure, "several hosts in the clear: whoever is on that network can run programs on them");
  command->add_option("PROGRAM", o.program, "and its arguments");
  command->positionals_at_end();
  return [options] { return run(*options); };
}

}  // namespace troupe::tools

#include "comm_ranks.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>
#include <thread>

extern char** environ;

namespace troupe::testing_ranks {

namespace {

constexpr int kGroupFd = 40;
constexpr int kSayFd = 41;
thread_local std::string* said = nullptr;

std::string run_body(const std::string& body, Communicator& group, const std::string& argument) {
  try {
    registry().bodies.at(body)(group, argument);
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

struct Process {
  pid_t pid = 0;
  int out = -1;
  std::string text;
};

Process start(const std::vector<std::string>& arguments, int group_fd) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (group_fd >= 0) posix_spawn_file_actions_adddup2(&actions, group_fd, kGroupFd);
  posix_spawn_file_actions_adddup2(&actions, ends[1], kSayFd);
  std::vector<char*> argv;
  for (const auto& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  Process process;
  const int error = posix_spawn(&process.pid, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  process.out = ends[0];
  if (error != 0) throw std::runtime_error(std::string{"spawn: "} + std::strerror(error));
  return process;
}

int be_rank(char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const std::string implementation = argv[2], body = argv[6], argument = argv[7], place = argv[8];
  const int rank = std::stoi(argv[3]), size = std::stoi(argv[4]);
  try {
    const auto group = registry().joins.at(implementation)(place, rank, size, std::chrono::milliseconds{std::stoll(argv[5])});
    const auto failed = run_body(body, *group, argument);
    if (failed.empty()) return 0;
    say(failed);
  } catch (const std::exception& error) {
    say(error.what());
  }
  return 3;
}

}  // namespace

Registry& registry() {
  static Registry all;
  return all;
}

void say(const std::string& line) {
  if (said != nullptr) *said += line + '\n';
  else (void)!write(kSayFd, (line + '\n').data(), line.size() + 1);
}

struct Ranks::Impl {
  std::unique_ptr<SharedGroup> group;
  std::vector<std::unique_ptr<Communicator>> seats;
  std::vector<std::thread> threads;
  std::vector<Process> processes;
  std::vector<RankResult> results;
};

Ranks::Ranks(const std::string& implementation, int size, const std::string& body, const std::string& argument,
             std::chrono::milliseconds timeout, const std::string& place)
    : impl_(std::make_unique<Impl>()) {
  impl_->results.resize(static_cast<std::size_t>(size));
  const bool joins = registry().on_threads.contains(implementation);
  if (implementation == "threads" || joins) {
    if (!joins) impl_->seats = make_thread_group(size, timeout);
    impl_->seats.resize(static_cast<std::size_t>(size));
    for (int r = 0; r < size; ++r)
      impl_->threads.emplace_back([=, this] {
        auto& result = impl_->results[static_cast<std::size_t>(r)];
        auto& seat = impl_->seats[static_cast<std::size_t>(r)];
        said = &result.text;
        std::string failed;
        try {
          if (joins) seat = registry().joins.at(implementation)(place, r, size, timeout);
          failed = run_body(body, *seat, argument);
        } catch (const std::exception& error) {
          failed = error.what();
        }
        result.text += failed;
        result.ok = failed.empty();
      });
    return;
  }
  if (implementation == "shared_memory") impl_->group = SharedGroup::create(size, timeout);
  for (int r = 0; r < size; ++r)
    impl_->processes.push_back(start({"rank", "--rank", implementation, std::to_string(r), std::to_string(size),
                                      std::to_string(timeout.count()), body, argument, place},
                                     impl_->group ? impl_->group->fd() : -1));
}

Ranks::~Ranks() {
  for (auto& thread : impl_->threads)
    if (thread.joinable()) thread.join();
  for (auto& process : impl_->processes) {
    if (process.pid == 0) continue;
    ::kill(process.pid, SIGKILL);
    waitpid(process.pid, nullptr, 0);
    close(process.out);
  }
}

void Ranks::abort(const std::string& reason) { impl_->group->abort(reason); }

void Ranks::kill(int rank, int signal) { ::kill(impl_->processes[static_cast<std::size_t>(rank)].pid, signal); }

bool Ranks::wait_for(int rank, const std::string& line) {
  auto& process = impl_->processes[static_cast<std::size_t>(rank)];
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{20};
  while (process.text.find(line + '\n') == std::string::npos) {
    pollfd ready{process.out, POLLIN, 0};
    char bytes[512];
    if (std::chrono::steady_clock::now() > until || ::poll(&ready, 1, 1000) < 0) return false;
    if (ready.revents == 0) continue;
    const auto n = read(process.out, bytes, sizeof bytes);
    if (n <= 0) return false;
    process.text.append(bytes, static_cast<std::size_t>(n));
  }
  return true;
}

std::vector<RankResult> Ranks::join() {
  for (auto& thread : impl_->threads) thread.join();
  for (std::size_t r = 0; r < impl_->processes.size(); ++r) {
    auto& process = impl_->processes[r];
    char bytes[512];
    for (ssize_t n; (n = read(process.out, bytes, sizeof bytes)) > 0;) process.text.append(bytes, static_cast<std::size_t>(n));
    int status = 0;
    waitpid(process.pid, &status, 0);
    close(process.out);
    process.pid = 0;
    impl_->results[r] = {process.text, WIFEXITED(status) && WEXITSTATUS(status) == 0, WIFSIGNALED(status) ? WTERMSIG(status) : 0};
  }
  return impl_->results;
}

std::string failures(const std::vector<RankResult>& results) {
  std::string text;
  for (std::size_t r = 0; r < results.size(); ++r)
    if (!results[r].ok) text += "rank " + std::to_string(r) + ": " + results[r].text + " signal " + std::to_string(results[r].signal) + '\n';
  return text;
}

int main_of_ranks(int argc, char** argv) {
  registry().joins["shared_memory"] = [](const std::string&, int rank, int, std::chrono::milliseconds) {
    return SharedGroup::join(kGroupFd, rank);
  };
  if (argc == 9 && std::strcmp(argv[1], "--rank") == 0) return be_rank(argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

}  // namespace troupe::testing_ranks

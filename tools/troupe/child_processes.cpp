#include "child_processes.hpp"

#include <troupe/errors.hpp>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <thread>

namespace troupe::tools {

namespace {

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> all;
  for (const auto& word : words) all.push_back(const_cast<char*>(word.c_str()));
  all.push_back(nullptr);
  return all;
}

/// In the child, between fork and exec. Tells `error_pipe` why exec failed.
[[noreturn]] void become(const ChildProcesses::Program& program, const std::vector<char*>& words, pid_t parent, int error_pipe) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  if (program.own_group) setpgid(0, 0);
  for (const int signal : {SIGINT, SIGTERM, SIGCHLD}) std::signal(signal, SIG_DFL);
  if (program.keep_fd >= 0) fcntl(program.keep_fd, F_SETFD, 0);
  for (const auto& [name, value] : program.environment) setenv(name.c_str(), value.c_str(), 1);
  execvp(words[0], words.data());
  const int error = errno;
  (void)!write(error_pipe, &error, sizeof error);
  _exit(127);
}

}  // namespace

std::string own_program() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

ChildProcesses::~ChildProcesses() {
  for (const auto& [pid, name] : running_) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
}

pid_t ChildProcesses::start(const Program& program) {
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) throw Failure{Errc::StartFailed, std::string("cannot make a pipe: ") + std::strerror(errno)};
  const auto words = pointers(program.words);
  const auto parent = getpid();
  const auto pid = fork();
  if (pid == 0) become(program, words, parent, pipe_ends[1]);
  const int fork_error = errno;
  close(pipe_ends[1]);
  int error = 0;
  const bool failed = pid > 0 && read(pipe_ends[0], &error, sizeof error) == sizeof error;
  close(pipe_ends[0]);
  if (pid < 0) throw Failure{Errc::StartFailed, "cannot start " + program.name + ": " + std::strerror(fork_error)};
  if (failed) {
    waitpid(pid, nullptr, 0);
    throw Failure{error == ENOENT ? Errc::FileNotFound : Errc::StartFailed, "cannot run " + program.words.front() + ": " + std::strerror(error)};
  }
  running_.emplace(pid, program.name);
  return pid;
}

ChildProcesses::Ended ChildProcesses::wait() {
  int status = 0;
  const auto pid = waitpid(-1, &status, 0);
  if (pid < 0) return {};
  const auto found = running_.find(pid);
  Ended ended{pid, found == running_.end() ? "" : found->second, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status)};
  if (found != running_.end()) running_.erase(found);
  return ended;
}

void ChildProcesses::signal(pid_t pid, int signal) const {
  if (running_.contains(pid)) kill(pid, signal);
}

void ChildProcesses::end_all(std::chrono::milliseconds grace, pid_t except) {
  for (const auto& [pid, name] : running_) {
    if (pid != except) kill(pid, SIGTERM);
  }
  const auto deadline = std::chrono::steady_clock::now() + grace;
  const std::size_t kept = running_.contains(except) ? 1 : 0;
  while (running_.size() > kept && std::chrono::steady_clock::now() < deadline) {
    std::erase_if(running_, [&](const auto& one) { return one.first != except && waitpid(one.first, nullptr, WNOHANG) == one.first; });
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
  }
  std::erase_if(running_, [&](const auto& one) {
    if (one.first == except) return false;
    kill(one.first, SIGKILL);
    waitpid(one.first, nullptr, 0);
    return true;
  });
}

}  // namespace troupe::tools

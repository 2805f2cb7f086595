#include "child_process.hpp"

#include <troupe/errors.hpp>
#include <troupe/start_limits.hpp>

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include <sys/pidfd.h>  // of glibc 2.36, which forgot that C++ includes it
}

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace troupe::detail {

namespace {

constexpr int first_high_fd = 10;  // descriptors on their way to a child stay clear of the numbers it gets

std::string limit_text(int resource) {
  rlimit limit{};
  getrlimit(resource, &limit);
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : std::to_string(limit.rlim_cur);
}

[[noreturn]] void throw_start_failed(const std::string& call, int error) {
  std::string text = "cannot start a rank's process: " + call + ": " + std::strerror(error);
  if (error == EMFILE) text += " (RLIMIT_NOFILE is " + limit_text(RLIMIT_NOFILE) + "; raise it with ulimit -n)";
  if (error == EAGAIN || error == ENOMEM) text += "; " + limits_on_starting();
  throw Failure{Errc::StartFailed, text};
}

int checked(int result, const char* call) {
  if (result < 0) throw_start_failed(call, errno);
  return result;
}

Fd duplicate_high(int fd) { return Fd{checked(fcntl(fd, F_DUPFD_CLOEXEC, first_high_fd), "fcntl")}; }

std::pair<Fd, Fd> make_pipe() {
  int ends[2];
  checked(pipe2(ends, O_CLOEXEC), "pipe2");
  Fd reader{ends[0]}, writer{ends[1]};
  return {std::move(reader), duplicate_high(writer.get())};
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (const auto& string : strings) result.push_back(const_cast<char*>(string.c_str()));
  result.push_back(nullptr);
  return result;
}

/// Everything that the child needs between vfork and exec, where it must not allocate.
struct Exec {
  const char* program;
  char* const* arguments;
  char* const* environment;
  static constexpr int count = 6;
  int from[count];  // becomes descriptors 0 to 5; the last may be -1
  pid_t parent;
};

// In the child, on the parent's memory: system calls only. Returns the errno of the one that failed.
int become(const Exec& exec) {
  if (setpgid(0, 0) != 0) return errno;  // a terminal's Ctrl-C is for the group's process to decide on
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return errno;
  if (getppid() != exec.parent) return ECHILD;
  for (int to = 0; to < Exec::count; ++to) {
    if (exec.from[to] >= 0 && dup2(exec.from[to], to) < 0) return errno;
  }
  const unsigned first = exec.from[Exec::count - 1] >= 0 ? Exec::count : Exec::count - 1;
  if (close_range(first, ~0U, 0) != 0 && close_range(first, ~0U, CLOSE_RANGE_CLOEXEC) != 0 && errno != ENOSYS) return errno;
  struct sigaction by_default{};
  by_default.sa_handler = SIG_DFL;
  for (const int number : {SIGINT, SIGTERM, SIGPIPE, SIGCHLD, SIGUSR1, SIGUSR2}) sigaction(number, &by_default, nullptr);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execve(exec.program, exec.arguments, exec.environment);
  return errno;
}

// vfork, not fork: copying the page tables of a process that holds models takes tens of milliseconds.
pid_t spawn(const Exec& exec) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // no handler of the parent runs in the child
  volatile int child_error = 0;
  const pid_t pid = vfork();
  if (pid == 0) {
    child_error = become(exec);
    _exit(127);
  }
  const int error = pid < 0 ? errno : child_error;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) throw_start_failed("vfork", error);
  if (error != 0) {
    waitpid(pid, nullptr, 0);
    throw_start_failed(exec.program, error);
  }
  return pid;
}

}  // namespace

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

Child start_child(const ChildOrder& order) {
  auto [output, output_end] = make_pipe();
  auto [error, error_end] = make_pipe();
  Fd nothing{checked(open("/dev/null", O_RDONLY | O_CLOEXEC), "/dev/null")};
  const Fd input = duplicate_high(nothing.get());
  const Fd link = duplicate_high(order.link_fd);
  const Fd seat = duplicate_high(order.seat_fd);
  const Fd box = order.box_fd >= 0 ? duplicate_high(order.box_fd) : Fd{};
  const auto arguments = pointers(order.arguments);
  const auto environment = pointers(order.environment);
  const Exec exec{order.program.c_str(), arguments.data(), environment.data(),
                  {input.get(), output_end.get(), error_end.get(), link.get(), seat.get(), box.get()}, getpid()};
  Child child;
  child.pid = spawn(exec);
  child.process = Fd{pidfd_open(child.pid, 0)};
  if (child.process.get() < 0) {
    const int failed = errno;
    kill(child.pid, SIGKILL);
    waitpid(child.pid, nullptr, 0);
    throw_start_failed("pidfd_open", failed);
  }
  child.output = std::move(output);
  child.error = std::move(error);
  return child;
}

void kill_child(const Child& child) noexcept {
  pidfd_send_signal(child.process.get(), SIGKILL, nullptr, 0);
  kill(-child.pid, SIGKILL);  // not reaped yet, so the number is still this child's
}

bool has_ended(const Child& child) noexcept {
  pollfd process{child.process.get(), POLLIN, 0};
  return poll(&process, 1, 0) == 1;
}

ChildStatus reap(const Child& child) noexcept {
  const auto id = static_cast<id_t>(child.process.get());
  siginfo_t info{};
  while (waitid(P_PIDFD, id, &info, WEXITED | WNOWAIT) != 0) {
    if (errno == EAGAIN) {  // whoever watches the pidfd has made it not wait
      pollfd ended{child.process.get(), POLLIN, 0};
      (void)poll(&ended, 1, -1);
    } else if (errno != EINTR) {
      return {false, -1};
    }
  }
  kill(-child.pid, SIGKILL);
  waitid(P_PIDFD, id, &info, WEXITED);
  return {info.si_code != CLD_EXITED, info.si_status};
}

std::pair<Fd, Fd> make_socket_pair() {
  int ends[2];
  checked(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "socketpair");
  return {Fd{ends[0]}, Fd{ends[1]}};
}

void require_descriptors(int count, const std::string& for_what) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  std::error_code unreadable;
  std::uint64_t used = 0;
  for (std::filesystem::directory_iterator entry{"/proc/self/fd", unreadable}, end; !unreadable && entry != end;
       entry.increment(unreadable)) {
    ++used;
  }
  if (unreadable && unreadable.value() == EMFILE) used = limit.rlim_cur;
  if (used + static_cast<std::uint64_t>(count) <= limit.rlim_cur) return;
  throw Failure{Errc::StartFailed, "cannot start " + for_what + ": they need " + std::to_string(count) +
                                       " file descriptors, and " + std::to_string(used) + " of RLIMIT_NOFILE = " +
                                       std::to_string(limit.rlim_cur) + " are in use; raise it with ulimit -n"};
}

}  // namespace troupe::detail

#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace troupe::detail {

/// Owns a file descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) noexcept : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd();
  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

/// Where a child finds what it is given.
constexpr int child_link_fd = 3;
constexpr int child_seat_fd = 4;
constexpr int child_box_fd = 5;
/// Descriptors that the starter holds for each child: link, seats, black box, process, standard output, standard error.
constexpr int descriptors_per_child = 6;

struct ChildOrder {
  std::string program;
  std::vector<std::string> arguments;
  std::vector<std::string> environment;  ///< NAME=value
  int link_fd = -1;                      ///< becomes child_link_fd
  int seat_fd = -1;                      ///< becomes child_seat_fd
  int box_fd = -1;                       ///< becomes child_box_fd; -1: there is none
};

struct Child {
  pid_t pid = -1;
  Fd process;  ///< a pidfd: readable once the child has ended
  Fd output;   ///< reads what it prints
  Fd error;
};

/// How a child ended.
struct ChildStatus {
  bool by_signal = false;
  int value = 0;  ///< exit code or signal; -1: another part of this program took the status
};

/// Starts a program in a process group of its own, with nothing open but these descriptors and 0 to 2, default signal
/// handling, and SIGKILL when the calling thread ends: call it on a thread that outlives the child.
/// Throws Failure{StartFailed} naming the limit that was hit.
[[nodiscard]] Child start_child(const ChildOrder& order);

/// Ends the child and what it started in its process group. Safe until `reap` was called.
void kill_child(const Child& child) noexcept;

/// Looks; does not wait.
[[nodiscard]] bool has_ended(const Child& child) noexcept;

/// Takes the status of a child that has ended, and ends what is left of its process group. Waits when it has not.
[[nodiscard]] ChildStatus reap(const Child& child) noexcept;

/// Both ends of a stream socket. Throws Failure{StartFailed}.
[[nodiscard]] std::pair<Fd, Fd> make_socket_pair();

/// Throws Failure{StartFailed} when this process may not open `count` more descriptors.
void require_descriptors(int count, const std::string& for_what);

}  // namespace troupe::detail

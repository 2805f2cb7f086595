#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace troupe::tools {

/// Programs that this one starts, which end with it. Not for several threads.
class ChildProcesses {
 public:
  ChildProcesses() = default;
  /// Ends those that still run, at once.
  ~ChildProcesses();
  ChildProcesses(const ChildProcesses&) = delete;
  ChildProcesses& operator=(const ChildProcesses&) = delete;

  struct Program {
    std::string name;  ///< for messages
    std::vector<std::string> words;
    std::map<std::string, std::string> environment{};  ///< beside this process's own
    bool own_group = false;  ///< Ctrl-C does not reach it
    int keep_fd = -1;        ///< a descriptor that it inherits
  };
  /// Throws Failure{StartFailed, FileNotFound}.
  pid_t start(const Program& program);

  struct Ended {
    pid_t pid = 0;
    std::string name;
    int code = 0;  ///< 128 + signal when it was killed
  };
  /// Waits for one to end.  Blocks; a signal with a handler interrupts it: `pid` 0 then.
  [[nodiscard]] Ended wait();
  void signal(pid_t pid, int signal) const;
  /// Asks all but `except` to end, and kills what is left after `grace`.
  void end_all(std::chrono::milliseconds grace, pid_t except = 0);
  [[nodiscard]] bool is_empty() const { return running_.empty(); }

 private:
  std::map<pid_t, std::string> running_;
};

/// The path of this program's file.
[[nodiscard]] std::string own_program();

}  // namespace troupe::tools

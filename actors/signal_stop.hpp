#pragma once

#include <csignal>
#include <functional>
#include <thread>

namespace troupe {

/// Calls a function for every SIGINT and SIGTERM while it lives, on a thread of its own; the handlers that were there
/// are put back afterwards. Of several at a time in a process, only the first gets the signals.
class SignalStop {
 public:
  explicit SignalStop(std::function<void(int signal)> on_signal);
  ~SignalStop();
  SignalStop(const SignalStop&) = delete;
  SignalStop& operator=(const SignalStop&) = delete;

 private:
  int pipe_[2] = {-1, -1};
  struct sigaction old_int_ = {};
  struct sigaction old_term_ = {};
  std::thread reader_;
};

}  // namespace troupe

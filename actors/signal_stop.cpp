#include "signal_stop.hpp"

#include <troupe/start_limits.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace troupe {

namespace {

// A signal handler has nothing but globals to reach its object by. -1: no one listens.
std::atomic<int> write_end{-1};

void on_stop_signal(int signal) {
  const int saved = errno;
  const auto byte = static_cast<unsigned char>(signal);
  if (const int fd = write_end.load(); fd >= 0) (void)!::write(fd, &byte, 1);
  errno = saved;
}

}  // namespace

SignalStop::SignalStop(std::function<void(int)> on_signal) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return;  // out of descriptors: signals keep doing what they did
  int nobody = -1;
  if (!write_end.compare_exchange_strong(nobody, ends[1])) {
    ::close(ends[0]);
    ::close(ends[1]);
    return;
  }
  const auto read_signals = [fd = ends[0], call = std::move(on_signal)] {
    unsigned char signal = 0;
    for (;;) {
      const auto got = ::read(fd, &signal, 1);
      if (got < 0 && errno == EINTR) continue;
      if (got != 1 || signal == 0) return;
      call(signal);
    }
  };
  try {
    reader_ = start_thread("signals", read_signals);
  } catch (...) {
    write_end = -1;
    ::close(ends[0]);
    ::close(ends[1]);
    throw;
  }
  pipe_[0] = ends[0];
  pipe_[1] = ends[1];
  struct sigaction action = {};
  action.sa_handler = on_stop_signal;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, &old_int_);
  ::sigaction(SIGTERM, &action, &old_term_);
}

SignalStop::~SignalStop() {
  if (pipe_[1] < 0) return;
  ::sigaction(SIGINT, &old_int_, nullptr);
  ::sigaction(SIGTERM, &old_term_, nullptr);
  write_end = -1;
  const unsigned char end = 0;
  (void)!::write(pipe_[1], &end, 1);
  reader_.join();
  ::close(pipe_[0]);
  ::close(pipe_[1]);
}

}  // namespace troupe

#pragma once

#include "child_process.hpp"
#include "io_thread.hpp"

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace troupe::detail {

/// The last lines that a rank printed. Threads: any.
class LastLines {
 public:
  void add(std::string line);
  [[nodiscard]] std::vector<std::string> get() const;

 private:
  mutable std::mutex mutex_;
  std::deque<std::string> lines_;
};

/// Passes on what ranks print, line by line as "[rank 1] …", to this process's standard output and error.
///
/// On a thread of its own: when nobody reads this process's output, ranks that print wait, and nothing else does.
class OutputRelay {
 public:
  OutputRelay() = default;
  ~OutputRelay();
  OutputRelay(const OutputRelay&) = delete;
  OutputRelay& operator=(const OutputRelay&) = delete;

  /// @param ended called on the relay's thread when both are at their end
  [[nodiscard]] std::shared_ptr<LastLines> watch(int rank, Fd output, Fd error, std::function<void()> ended);

 private:
  std::atomic<bool> stopping_{false};
  IoThread thread_;
};

}  // namespace troupe::detail

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

class Pump;

/// A line of a rank.
struct OutputLine {
  bool is_error = false;  ///< of standard error
  int rank = -1;          ///< -1: of a process that is none yet
  std::string text;       ///< without its end
};

/// Writes "[rank 1] …" to standard output or error; waits while nobody reads it, until `stopping`.
void write_line(const OutputLine& line, const std::atomic<bool>& stopping);

/// What a rank's process prints: whose it is, and its last lines. Threads: any.
class RankOutput {
 public:
  explicit RankOutput(int rank) { begin(rank); }
  /// From here on it is rank `rank`'s, -1: of none yet. Forgets earlier lines.
  void begin(int rank);
  void add(std::string line);
  [[nodiscard]] std::vector<std::string> lines() const;
  [[nodiscard]] int rank() const;

 private:
  friend class OutputRelay;
  mutable std::mutex mutex_;
  int rank_ = -1;
  std::deque<std::string> lines_;
  std::vector<std::weak_ptr<Pump>> pumps_;
};

/// Passes on what ranks print, line by line as "[rank 1] …", to this process's standard output and error.
///
/// On a thread of its own: when nobody reads this process's output, ranks that print wait, and nothing else does.
class OutputRelay {
 public:
  /// @param sink gets the lines, on the relay's thread, instead of standard output and error
  explicit OutputRelay(std::function<void(OutputLine)> sink = {});
  ~OutputRelay();
  OutputRelay(const OutputRelay&) = delete;
  OutputRelay& operator=(const OutputRelay&) = delete;

  /// @param ended called on the relay's thread when both are at their end
  [[nodiscard]] std::shared_ptr<RankOutput> watch(int rank, Fd output, Fd error, std::function<void()> ended);
  /// Passes on what has been printed so far, and calls back on the relay's thread.
  void drain(const std::shared_ptr<RankOutput>& output, std::function<void()> done);

 private:
  std::atomic<bool> stopping_{false};
  std::function<void(OutputLine)> sink_;
  IoThread thread_;
};

}  // namespace troupe::detail

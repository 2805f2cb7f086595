#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace troupe::detail {

/// A line that a rank printed.
struct LogLine {
  std::uint64_t number = 0;  ///< in the order in which lines came to the head, from 1 on
  std::string run;
  int rank = 0;
  std::string node;
  std::string text;  ///< without its end; cut at LogRing::Options::line_bytes
};

/// Which lines are wanted.
struct LogFilter {
  std::string run;          ///< empty: of all runs
  std::optional<int> rank;  ///< of all ranks when absent
};

/// Lines, and where to go on.
struct LogPage {
  std::vector<LogLine> lines;
  std::uint64_t next = 0;     ///< `after` of the next page
  std::uint64_t dropped = 0;  ///< lines (of any rank) that were gone before this page could have them
};

/// The last lines of every rank, bounded per rank and in all; the oldest go first. Readers page through it at their own pace, so a slow one costs
/// the head nothing: it is told how many lines it missed.
/// Threads: any.
class LogRing {
 public:
  struct Options {
    std::size_t lines_per_rank = 1'000;
    std::size_t line_bytes = 4 << 10;
    std::size_t total_bytes = 32 << 20;
  };

  LogRing() : LogRing(Options{}) {}
  explicit LogRing(Options options) : options_(options) {}

  void add(const std::string& run, int rank, const std::string& node, std::string text);

  /// Lines after number `after`, at most `max_lines` and about `max_bytes` of text. @param tail with `after` 0: only the last so many
  [[nodiscard]] LogPage read(const LogFilter& filter, std::uint64_t after, std::size_t max_lines, std::size_t max_bytes, std::optional<std::size_t> tail = {}) const;

  /// Calls `told` once, on the thread that adds, when a line comes that `filter` wants; at once when one after `after` is there already.
  /// Returns a number for `forget`.
  std::uint64_t when_more(LogFilter filter, std::uint64_t after, std::function<void()> told);
  /// `told` is not called after this returns, unless it is being called now.
  void forget(std::uint64_t waiter);

 private:
  struct Waiter {
    LogFilter filter;
    std::function<void()> told;
  };

  void drop_oldest();

  Options options_;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, LogLine> lines_;
  std::map<std::pair<std::string, int>, std::deque<std::uint64_t>> of_rank_;
  std::map<std::uint64_t, Waiter> waiters_;
  std::size_t bytes_ = 0;
  std::uint64_t next_number_ = 1, next_waiter_ = 1;
};

}  // namespace troupe::detail

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>

namespace troupe::detail {

/// How far ahead of its reader an output may run: who prints more waits. Threads: any.
class OutputGate {
 public:
  static constexpr std::size_t ahead_bytes = 1 << 20;

  /// Waits until there is room for `bytes`. False: the gate was closed, or `stopping` was set.
  [[nodiscard]] bool pass(std::size_t bytes, const std::atomic<bool>& stopping);
  void taken(std::size_t bytes);
  void close();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t ahead_ = 0;
  bool is_closed_ = false;
};

}  // namespace troupe::detail

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace troupe::detail {

/// act(0) … act(n - 1) on at most `threads` threads: for work that waits for storage. The first exception is thrown again once all threads have ended.
template <class F>
void in_parallel(std::size_t n, std::size_t threads, F&& act) {
  if (n <= 1 || threads <= 1) {
    for (std::size_t i = 0; i < n; ++i) act(i);
    return;
  }
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failed;
  const auto work = [&] {
    for (auto i = next++; i < n; i = next++) {
      try {
        act(i);
      } catch (...) {
        next = n;
        const std::lock_guard lock{mutex};
        if (!failed) failed = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> all;
    for (std::size_t i = 0; i < std::min(n, threads); ++i) all.emplace_back(work);
  }
  if (failed) std::rethrow_exception(failed);
}

}  // namespace troupe::detail

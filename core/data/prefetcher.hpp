#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <troupe/data/tensor_dict.hpp>
#include <vector>

namespace troupe {

/// Loads batches number `first` to `last` - 1 on threads and hands them out in order, never more
/// than `window` ahead of the caller. What `load` throws for a batch is thrown by the `next()` that
/// would have returned it.
///
/// Threads: `next` has one caller; `load` is called from all workers at once. The destructor waits
/// for the batches that are being loaded, drops the rest and joins.
class Prefetcher {
 public:
  using Load = std::function<Batch(std::int64_t)>;

  /// Throws Failure{StartFailed} when the system gives no more threads.
  Prefetcher(int num_workers, std::int64_t window, std::int64_t first, std::int64_t last,
             Load load);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// The next batch; nothing after the last.
  [[nodiscard]] std::optional<Batch> next();

 private:
  struct Slot {
    bool ready = false;
    Batch batch;
    std::exception_ptr error;
  };

  void work(const std::stop_token& stop);

  std::int64_t window_;
  std::int64_t last_;
  Load load_;
  std::mutex mutex_;
  std::condition_variable_any space_;  // the caller took a batch: one more may be loaded
  std::condition_variable ready_;      // a batch was loaded
  std::int64_t next_to_load_;
  std::int64_t next_to_take_;
  std::vector<Slot> slots_;  // batch number b is in slot b % window
  std::vector<std::jthread> workers_;
};

}  // namespace troupe

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <vector>

#include "batch_pipe.hpp"

namespace troupe {

/// Loads batches on threads and hands them out in the order of their jobs, or as they come; never more than `window`
/// ahead of the caller. Jobs are taken from the source by one thread at a time. After a source that threw it is not asked again.
///
/// The destructor waits for the batches that are being loaded, drops the rest and joins.
class Prefetcher final : public BatchPipe {
 public:
  struct Options {
    int num_workers = 1;
    std::int64_t window = 2;
    bool in_order = true;
    std::chrono::milliseconds timeout{0};  ///< of a wait for a batch; 0: none
  };
  /// Throws Failure{StartFailed} when the system gives no more threads.
  Prefetcher(const Options& options, std::unique_ptr<JobSource> source, MakeBatch make);
  ~Prefetcher() override;
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// Throws Failure{DeadlinePassed} after the timeout.
  [[nodiscard]] std::optional<LoadedBatch> next() override;

 private:
  struct Result {
    LoadedBatch batch;
    std::exception_ptr error;
  };

  void work(const std::stop_token& stop);
  /// Takes a job and its place among all; nothing when there is no more to do.
  std::optional<std::pair<std::int64_t, std::optional<BatchJob>>> take(const std::stop_token& stop, std::exception_ptr& error);
  [[nodiscard]] bool has_ready() const { return options_.in_order ? slots_[static_cast<std::size_t>(handed_ % options_.window)].has_value() : !done_.empty(); }

  Options options_;
  std::unique_ptr<JobSource> source_;
  MakeBatch make_;
  std::mutex take_mutex_;  // over the source; before mutex_
  std::mutex mutex_;
  std::condition_variable_any space_;  // the caller took a batch: one more may be loaded
  std::condition_variable ready_;      // a batch was loaded, or the end is known
  std::int64_t taken_ = 0, handed_ = 0;
  bool ended_ = false;                        // the source has no more
  std::vector<std::optional<Result>> slots_;  // in order: job number j is in slot j % window
  std::deque<Result> done_;                   // as they came
  std::vector<std::jthread> workers_;
};

}  // namespace troupe

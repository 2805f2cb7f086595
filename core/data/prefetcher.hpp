#pragma once

#include <troupe/data/tensor_dict.hpp>

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace troupe {

/// Makes batches 0, 1, … on several threads, a bounded number ahead of the reader, and hands them out in order.
///
/// Threads: one reader; `make` is called from the workers. Destroying it stops the workers after their current batch.
class Prefetcher {
 public:
  using Make = std::function<Batch(std::size_t batch)>;
  /// @param ahead batches that may be made before the reader asks for them.
  Prefetcher(std::size_t num_batches, int num_workers, std::size_t ahead, Make make);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// The next batch; nothing after the last. Rethrows what `make` threw for it.
  [[nodiscard]] std::optional<Batch> next();

 private:
  struct Made {
    Batch batch;
    std::exception_ptr error;
  };
  void work();

  const std::size_t num_batches_;
  const std::size_t ahead_;
  const Make make_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t claimed_ = 0;  // batches given to a worker
  std::size_t read_ = 0;     // batches handed out
  bool stopping_ = false;
  std::map<std::size_t, Made> made_;
  std::vector<std::thread> workers_;
};

}  // namespace troupe

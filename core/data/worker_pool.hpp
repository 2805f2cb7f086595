#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <troupe/data/data_workers.hpp>
#include <vector>

#include "batch_pipe.hpp"
#include "worker_wire.hpp"

namespace troupe {

/// The segments of one worker that no batch uses; batches give theirs back from any thread, also when the pool is gone.
class SegmentShelf {
 public:
  struct Held {
    std::uint64_t id = 0;
    std::unique_ptr<SharedSegment> segment;
    bool sent = false;  // the worker has its descriptor
  };
  explicit SegmentShelf(std::size_t most) : most_(most) {}
  /// A free one, or a new one.
  [[nodiscard]] Held take();
  void give_back(Held held);
  /// Numbers of segments that are gone since the last call.
  [[nodiscard]] std::vector<std::uint64_t> dropped();

 private:
  std::mutex mutex_;
  std::size_t most_;
  std::uint64_t next_id_ = 0;
  std::vector<Held> free_;
  std::vector<std::uint64_t> dropped_;
};

/// This program, started again `num_workers` times as servers of batches. Destroying it ends and reaps them.
///
/// Threads: one caller. Errors: Failure{StartFailed} when one cannot be started or ends before it is ready; {RankExited, RankKilled}
/// naming the worker that ended later, after which the pool is broken; {DeadlinePassed} after the timeout.
class WorkerPool : public std::enable_shared_from_this<WorkerPool> {
 public:
  struct Options {
    WorkerProcesses processes;
    int num_workers = 1;
    int prefetch_factor = 2;
    bool in_order = true;
    bool batching = true;
    std::chrono::milliseconds timeout{0};
    std::optional<std::size_t> dataset_size;  ///< what the loader's own data set says: the workers' must agree
    bool iterable = false;
  };
  explicit WorkerPool(Options options);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// An epoch: jobs of a data set with indices, or a pass over a stream of which each worker takes its share. One at a time;
  /// what the one before had ordered is dropped. The pipe keeps the pool.
  [[nodiscard]] std::unique_ptr<BatchPipe> load(std::unique_ptr<JobSource> source);
  [[nodiscard]] std::unique_ptr<BatchPipe> read(const StreamOrder& order);
  [[nodiscard]] bool broken() const noexcept { return broken_; }

 private:
  class Pipe;
  struct Outstanding {
    std::uint64_t generation = 0;
    std::int64_t place = 0;
    SegmentShelf::Held held;
    BatchMeta meta;
  };
  struct Worker {
    pid_t pid = -1;
    OwnFd socket;
    std::shared_ptr<SegmentShelf> shelf;
    std::deque<Outstanding> outstanding;  // in the order of its orders, which is that of its replies
  };
  struct Result {
    std::optional<LoadedBatch> batch;  // nothing: the stream had ended
    std::exception_ptr error;
  };

  void start(std::size_t number);
  void wait_until_ready();
  void begin_epoch();
  void send(Worker& worker, const Order& order, int fd = -1);
  void send_body(Worker& worker, OrderKind kind, const std::string& body);
  void order_batch(Worker& worker, OrderKind kind, std::int64_t place, BatchMeta meta);
  /// Waits for replies and puts those of this epoch into results_. False after `limit`.
  bool receive(std::optional<std::chrono::steady_clock::time_point> limit);
  void take_reply(Worker& worker, const Packet& packet);
  [[noreturn]] void lost(std::size_t number, bool before_ready);
  [[nodiscard]] std::string name(std::size_t number) const;
  void end_all() noexcept;

  Options options_;
  std::vector<Worker> workers_;
  SharedSegment page_;  // holds the generation that counts
  std::uint64_t generation_ = 0;
  std::map<std::int64_t, Result> results_;  // by place in this epoch
  bool broken_ = false;
};

}  // namespace troupe

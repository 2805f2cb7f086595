#pragma once

#include "device_feed.hpp"

#include <troupe/data_iterator.hpp>

#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace troupe::detail {

/// A batch that is ready for the loop, and what is known of the place behind it.
struct MadeBatch {
  Batch batch;                ///< on the host, unless `packed` has it
  DeviceFeed::Packed packed;
  DatasetCursor cursor;
  std::int64_t num_rows = 0;
  std::int64_t padding_rows = 0;
  bool is_last = false;       ///< of the epoch
};

/// Takes rows from a stream and makes batches of them, in order, on threads of its own or on the caller's.
///
/// Whether a batch is the last is known from the cursor, else by taking the next one's rows first.
/// Threads: one caller. Errors come at their place. Destroying it ends its threads and the stream.
class BatchMaker {
 public:
  /// @param feed packs batches for a device; nullptr: none.
  BatchMaker(DatasetStream stream, const IterBatchesOptions& options, DeviceFeed* feed);
  ~BatchMaker();
  BatchMaker(const BatchMaker&) = delete;
  BatchMaker& operator=(const BatchMaker&) = delete;

  /// Nothing at the end of the epoch. @param on_slow called once a second while there is none.
  [[nodiscard]] std::optional<MadeBatch> next(const std::function<void()>& on_slow);
  /// Whether `next` would not wait.
  [[nodiscard]] bool is_ready();
  [[nodiscard]] StreamStats stats() const { return stream_.stats(); }

 private:
  struct Rows {
    std::shared_ptr<arrow::RecordBatch> rows;
    MadeBatch made;
  };
  struct Slot {
    std::optional<MadeBatch> made;  ///< nothing: the end, or `error`
    std::exception_ptr error;
  };
  [[nodiscard]] std::optional<Rows> fetch();
  /// The next rows, marked if they are the last.
  [[nodiscard]] std::optional<Rows> take();
  [[nodiscard]] MadeBatch make(Rows rows) const;
  void work(const std::stop_token& stop);

  const IterBatchesOptions options_;
  DeviceFeed* const feed_;
  DatasetStream stream_;

  std::mutex take_mutex_;  ///< one thread at a time asks the stream; guards what follows
  std::optional<Rows> ahead_;
  std::exception_ptr ahead_error_;
  bool has_begun_ = false, has_ended_ = false;
  std::int64_t next_taken_ = 0;

  std::mutex mutex_;  ///< guards what follows
  std::condition_variable_any ready_, space_;
  std::map<std::int64_t, Slot> slots_;
  std::int64_t next_given_ = 0, end_ = -1;  ///< end_: number of the slot that ends the epoch
  std::vector<std::jthread> threads_;       // last: they use the rest
};

}  // namespace troupe::detail

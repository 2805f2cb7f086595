#pragma once

#include <troupe/dataset/cursor.hpp>
#include <troupe/dataset/source.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace arrow {
class RecordBatch;
class Schema;
}  // namespace arrow

namespace troupe {

/// How a stream runs. None of it changes which rows come in which order, except `block_rows` and `block_bytes` where a step's result depends on
/// which rows it gets together.
struct ExecutionOptions {
  std::int64_t memory_budget_bytes = 256 << 20;  ///< of blocks read and not yet taken by the consumer, all stages together
  int num_readers = 2;                           ///< threads that read, and run steps without threads of their own
  std::int64_t block_rows = 4096;                ///< a block: at most so many rows,
  std::int64_t block_bytes = 4 << 20;            ///< and about so many bytes where the source knows how large its rows are
  BadRows bad_rows;                              ///< rows that cannot be read, or at which a row function throws Failure{DataMalformed}
  std::chrono::milliseconds stall_warning{30'000};  ///< `on_warning` when a consumer has waited so long, then after twice as long; 0: never
  std::chrono::milliseconds stall_deadline{0};      ///< `next` throws Failure{DeadlinePassed} naming the stage; 0: waits for ever
  std::function<void(const std::string&)> on_warning;  ///< from the consumer's thread (stalls) and readers (bad rows); nothing: stderr
};

/// Which part of the data set a stream gives.
struct SplitOptions {
  int rank = 0;
  int world_size = 1;
  SplitEqual equal = SplitEqual::Pad;
  /// Locality: the node that has fragment i of the source at hand (-1: any), and the node of each rank. Empty: none. Must be the same on all ranks.
  /// Ranks get fragments of their own node first; the number of rows they get is the same as without.
  std::vector<int> fragment_nodes;
  std::vector<int> rank_nodes;
};

struct StreamOptions {
  SplitOptions split;
  std::int64_t epoch = 0;       ///< the first one; decides shuffles
  std::int64_t num_epochs = 1;  ///< one after the other, in one stream; -1: without end
  ExecutionOptions execution;
};

/// What a stage has done. Times are summed over its threads.
struct StageStats {
  std::string name;
  int concurrency = 0;
  std::int64_t blocks = 0;
  std::int64_t rows_in = 0;
  std::int64_t rows_out = 0;
  std::int64_t bytes_out = 0;
  std::int64_t queued_blocks = 0;          ///< waiting in front of it now
  std::chrono::nanoseconds busy{0};        ///< in the function
  std::chrono::nanoseconds waited_in{0};   ///< for something to do
  std::chrono::nanoseconds waited_out{0};  ///< for room in the budget
};

struct StreamStats {
  std::vector<StageStats> stages;
  std::int64_t rows = 0;                   ///< that the consumer took
  std::int64_t batches = 0;
  std::int64_t skipped_rows = 0;           ///< bad ones
  std::int64_t held_bytes = 0;             ///< of blocks now in the stream
  std::int64_t peak_bytes = 0;             ///< the most there were
  std::chrono::nanoseconds consumer_waited{0};
  std::chrono::nanoseconds first_batch{0}; ///< from the start of the stream to the first rows taken; 0: none yet
  std::chrono::nanoseconds age{0};         ///< since the stream began
  /// A table, one stage a line, rows/s, and who was waited for.
  [[nodiscard]] std::string to_string() const;
};

namespace detail {
class Pipeline;
}

/// One rank's rows in order, made ahead by threads of its own.
///
/// Threads: one caller at a time; `stop` and `stats` from any thread. Destruction, also in the middle, ends all threads and frees all blocks and
/// temporary files; it waits for user functions that are running. Errors come at their place: after the rows before them, again at each later call.
class DatasetStream {
 public:
  explicit DatasetStream(std::shared_ptr<detail::Pipeline> pipeline);
  DatasetStream(DatasetStream&&) noexcept;
  DatasetStream& operator=(DatasetStream&&) noexcept;
  ~DatasetStream();

  /// Some rows, as the stages made them, never none; nothing at the end.
  [[nodiscard]] std::shared_ptr<arrow::RecordBatch> next();
  /// The next `batch_size` rows, fewer only at the end of an epoch (none then, with `drop_last`: the cursor passes over them); batches do not
  /// cross epochs. Nothing at the end of the stream.
  [[nodiscard]] std::shared_ptr<arrow::RecordBatch> next_batch(std::int64_t batch_size, bool drop_last = false);

  /// Says what comes after all rows handed out so far. A consumer that reads ahead takes one with each batch and keeps it beside it.
  [[nodiscard]] DatasetCursor cursor() const;
  /// How many rows at the end of what was handed out last are there only to make ranks equal (SplitEqual::Pad).
  [[nodiscard]] std::int64_t padding_rows() const;
  [[nodiscard]] StreamStats stats() const;
  /// Makes a `next` that waits in another thread throw Failure{Cancelled}, and all later ones.
  void stop() noexcept;

 private:
  std::shared_ptr<detail::Pipeline> pipeline_;
};

}  // namespace troupe

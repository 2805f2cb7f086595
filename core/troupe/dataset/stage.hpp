#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>

namespace arrow {
class RecordBatch;
class Schema;
}  // namespace arrow

namespace troupe {

/// A user's function over columns. Called from threads of the stream; must give the same result for the same batch each time.
using BatchFunction = std::function<std::shared_ptr<arrow::RecordBatch>(const std::shared_ptr<arrow::RecordBatch>&)>;

/// How an asynchronous stage gives back what it made. Callable from any thread, once; a copy that is dropped without a call counts as failure
/// as soon as the last copy is gone, so an actor that dies does not leave the stream waiting.
class BatchReply {
 public:
  struct Target {
    virtual ~Target() = default;
    virtual void deliver(std::shared_ptr<arrow::RecordBatch> rows, std::exception_ptr error) = 0;
  };
  explicit BatchReply(std::unique_ptr<Target> target);
  void operator()(std::shared_ptr<arrow::RecordBatch> rows) const;
  void fail(std::exception_ptr error) const;

 private:
  struct Once;
  std::shared_ptr<Once> once_;
};

/// A user's function that answers later: the door for stages that are actors. Called from one thread of the stream at a time and must not block.
using AsyncBatchFunction = std::function<void(std::shared_ptr<arrow::RecordBatch>, BatchReply)>;

/// How a step runs.
struct StepOptions {
  std::string name{};     ///< in messages and stats; empty: the kind of step
  int concurrency = 0;    ///< threads of its own (batches in flight, for an asynchronous step); 0: runs on the threads that read
  std::int64_t batch_size = 0;     ///< rows a call gets at most; 0: a block as it comes
  bool changes_num_rows = false;   ///< the function may return another number of rows than it got; then equal shares need `counted()`
  std::shared_ptr<arrow::Schema> schema{};  ///< of what the function returns; nothing: seen from its first result
};

}  // namespace troupe

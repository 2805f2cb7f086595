#pragma once

#include <troupe/batch_columns.hpp>
#include <troupe/data/data_loader.hpp>
#include <troupe/dataset/dataset.hpp>
#include <troupe/device.hpp>
#include <troupe/train_context.hpp>

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

namespace troupe {

class TrainingStream;

/// Makes a batch of its rows. Called from several threads at once; must give the same for the same rows, for a resumed run makes batches again.
using ColumnCollate = std::function<Batch(const BatchColumns&)>;

/// Names and defaults as in Ray Data's iter_torch_batches; what differs says so.
struct IterBatchesOptions {
  std::int64_t batch_size = 256;                     ///< of one rank
  int prefetch_batches = 1;                          ///< made ahead on min(4, this) threads; 0: on the caller's
  bool drop_last = false;
  /// Rows are permuted within windows of so many source rows (at least a batch), another way every epoch; 0: not. No batch in the middle is
  /// short, as Ray's are, and a position needs no copy of the buffer.
  std::int64_t local_shuffle_buffer_size = 0;
  std::optional<std::uint64_t> local_shuffle_seed = {};  ///< nothing: 0, not a random one: a resumed run must shuffle alike
  ColumnCollate collate_fn = {};                     ///< empty: BatchColumns::to_batch
  std::map<std::string, at::ScalarType> dtypes = {}; ///< by column; not with collate_fn
  ColumnPadding padding = {};                        ///< of lists, by column
  std::optional<Device> device = {};                 ///< nothing: the rank's, as Ray's "auto"
  bool pin_memory = true;                            ///< on the way to a GPU: batches are copied beside compute; Ray's default is false
};

/// One rank's share of a data set, as batches: Ray Train's DataIterator. A handle: copies are the same iterator.
///
/// Each `begin()` of `iter_batches` starts an epoch, which counts when its end is reached; one that was left early starts again, unless set_epoch()
/// says otherwise or a checkpoint was loaded. The position goes into an Accelerator's checkpoints and snapshots by itself.
///
/// Threads: the training thread. Errors: what readers, steps and collate throw reaches the loop at that batch, as a Failure that says where.
class DataIterator {
 public:
  struct Setup {
    std::string name = "dataset";
    SplitOptions split;                 ///< world_size 1: all rows
    ExecutionOptions execution;
    DeviceRuntime* runtime = nullptr;   ///< of the rank's device; must outlive the iterator; nullptr: the CPU's
    std::function<void(std::chrono::nanoseconds)> waited;  ///< told how long each batch was waited for
  };
  /// Without a context: any rows, any share.
  DataIterator(Dataset dataset, Setup setup);

  /// One epoch's batches: `for (const auto& batch : iterator.iter_batches({.batch_size = 16}))`.
  class Batches {
   public:
    class Iterator {
     public:
      using value_type = Batch;
      using difference_type = std::ptrdiff_t;
      Iterator();
      ~Iterator();
      Iterator(Iterator&&) noexcept;
      Iterator& operator=(Iterator&&) noexcept;
      const Batch& operator*() const { return *batch_; }
      const Batch* operator->() const { return &*batch_; }
      Iterator& operator++();
      void operator++(int) { ++*this; }
      bool operator==(const Iterator& other) const { return pass_ == other.pass_; }

     private:
      friend class Batches;
      class Pass;
      explicit Iterator(std::unique_ptr<Pass> pass);
      std::unique_ptr<Pass> pass_;  // null at the end
      std::optional<Batch> batch_;
    };
    [[nodiscard]] Iterator begin();
    [[nodiscard]] Iterator end() { return {}; }

    struct Shared;

   private:
    friend class DataIterator;
    Batches(std::shared_ptr<Shared> shared, IterBatchesOptions options) : shared_(std::move(shared)), options_(std::move(options)) {}
    std::shared_ptr<Shared> shared_;
    IterBatchesOptions options_;
  };
  /// Throws Failure{InvalidArgument} naming the option.
  [[nodiscard]] Batches iter_batches(IterBatchesOptions options = {}) const;

  /// Rows of one epoch on this rank, added ones counted. May count rows. Throws Failure{Unsupported} where steps change their number.
  [[nodiscard]] std::int64_t num_rows() const;
  /// Batches of one epoch on this rank: what learning-rate schedules are counted in.
  [[nodiscard]] std::int64_t num_batches(std::int64_t batch_size, bool drop_last = false) const;
  [[nodiscard]] const Dataset& dataset() const;
  [[nodiscard]] std::shared_ptr<arrow::Schema> schema() const { return dataset().schema(); }
  [[nodiscard]] const SplitOptions& split() const;

  /// The epoch that runs now or was left early; else the one that the next `begin()` starts.
  [[nodiscard]] std::int64_t epoch() const;
  /// The next `begin()` starts this epoch, from its beginning.
  void set_epoch(std::int64_t epoch);
  [[nodiscard]] const LoaderState& state() const;
  /// Of the epoch that began last: batches, and how long the loop stood still for them.
  [[nodiscard]] const LoaderStats& batch_stats() const;
  /// The same as text, above what each stage did; who was waited for.
  [[nodiscard]] std::string stats() const;

  /// Another handle of what `training_stream` gave.
  explicit DataIterator(std::shared_ptr<Batches::Shared> shared) : shared_(std::move(shared)) {}
  /// For `Accelerator::prepare`.
  [[nodiscard]] std::shared_ptr<TrainingStream> training_stream() const;

 private:
  std::shared_ptr<Batches::Shared> shared_;
};

}  // namespace troupe

#pragma once

#include <troupe/dataset/dataset.hpp>
#include <troupe/errors.hpp>

#include <atomic>
#include <mutex>
#include <optional>
#include <stop_token>

namespace troupe::detail {

using Batch = std::shared_ptr<arrow::RecordBatch>;
using Batches = std::vector<Batch>;

/// Where the rows that a step works on come from, for messages and bad rows.
struct StepContext {
  const std::string* path = nullptr;  ///< of the fragment
  std::int64_t first_row = 0;         ///< source rows of the fragment that the batch was made from
  std::int64_t num_rows = 0;
  const std::function<void(const BadRow&)>* on_bad_row = nullptr;  ///< nothing: bad rows are errors
};

/// A step at work. One per thread.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  [[nodiscard]] virtual Batch run(const Batch& rows, const StepContext& context) = 0;
};

/// The schema that a row function's records have, seen once and used by all threads and ranks alike.
struct SchemaSlot {
  std::mutex mutex;
  std::shared_ptr<arrow::Schema> schema;
};

struct Step {
  std::string kind;  ///< "map_batches"
  StepOptions options;
  bool keeps_rows = true;  ///< row i of the result is made from row i
  std::function<std::unique_ptr<StepRunner>()> make;
  AsyncBatchFunction async;             ///< instead of `make`
  std::int64_t window_rows = 0;         ///< > 0: this is shuffle_windows, and nothing else
  std::uint64_t seed = 0;
  std::shared_ptr<SchemaSlot> slot{};   ///< of a row function without a schema
  std::string arguments{};              ///< for the fingerprint

  [[nodiscard]] std::string name() const { return options.name.empty() ? kind : options.name; }
  [[nodiscard]] bool is_window() const { return window_rows > 0; }
};

/// A fragment in an epoch's order. `pass` numbers the passes over the source from epoch 0 on: `repeat` makes several an epoch.
struct OrderEntry {
  std::int64_t pass = 0;
  std::int64_t fragment = 0;
};

struct OrderOp {
  std::int64_t repeat = 0;  ///< > 0: so many passes
  std::uint64_t seed = 0;   ///< else: fragments permuted
};

/// A source whose rows differ from pass to pass.
class EpochSource : public Source {
 public:
  /// The source of one pass; the same object for the same pass as long as somebody holds it.
  [[nodiscard]] virtual std::shared_ptr<const Source> at_pass(std::int64_t pass) const = 0;
  /// Rows of the same columns, whichever are had at once.
  [[nodiscard]] virtual std::shared_ptr<const Source> sample() const { return at_pass(0); }
  const std::shared_ptr<arrow::Schema>& schema() const override { return first()->schema(); }
  const std::vector<Fragment>& fragments() const override { return first()->fragments(); }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    return first()->open(fragment, first_row, options);
  }
  std::int64_t count_rows(std::int64_t fragment) const override { return first()->count_rows(fragment); }

 private:
  const std::shared_ptr<const Source>& first() const;
  mutable std::once_flag once_;
  mutable std::shared_ptr<const Source> first_;
};

/// A source that has work to do before some of its fragments can be opened, and would rather be told which.
class PreparedSource : public Source {
 public:
  virtual void prepare(const std::vector<std::int64_t>& fragments, std::stop_token stop) const = 0;
};

[[nodiscard]] std::shared_ptr<const Source> at_pass(const std::shared_ptr<const Source>& source, std::int64_t pass);

/// Rows of a source's fragments: what metadata says, else counted, once and several fragments at a time.
class RowCounts {
 public:
  explicit RowCounts(std::shared_ptr<const Source> source) : source_(std::move(source)) {}
  /// Of all fragments, in the source's order.
  [[nodiscard]] std::vector<std::int64_t> all(std::int64_t pass) const;
  [[nodiscard]] bool known() const;  ///< without reading

 private:
  std::shared_ptr<const Source> source_;
  mutable std::mutex mutex_;
  mutable std::map<std::int64_t, std::vector<std::int64_t>> by_pass_;  ///< one entry, pass 0, for sources that are always the same
};

struct Plan {
  std::shared_ptr<const Source> source;
  std::vector<std::string> columns;  ///< that are read; empty: all
  std::vector<OrderOp> order;
  std::vector<Step> steps;
  std::shared_ptr<RowCounts> counts;  ///< shared by all plans over the source

  struct Shared {
    std::mutex mutex;
    std::shared_ptr<arrow::Schema> schema;
    std::weak_ptr<Pipeline> latest;  ///< for stats()
    std::string last_stats;
    std::int64_t count = -1;
  };
  std::shared_ptr<Shared> shared = std::make_shared<Shared>();

  [[nodiscard]] bool keeps_rows() const;  ///< every source row becomes one row
  [[nodiscard]] std::int64_t window_rows() const;  ///< of the largest shuffle window; 0: none
  [[nodiscard]] std::string fingerprint() const;
};

/// The fragments of `epoch` in their order.
[[nodiscard]] std::vector<OrderEntry> epoch_order(const Plan& plan, std::int64_t num_fragments, std::int64_t epoch);
/// Rows of each entry of an epoch's order. Counts where it must.
[[nodiscard]] std::vector<std::int64_t> epoch_counts(const Plan& plan, const std::vector<OrderEntry>& order);

/// Rows of the source that make up a block of `fragment`; always the same, so that a resumed stream makes the same blocks.
[[nodiscard]] std::int64_t rows_per_block(const Fragment& fragment, const Plan& plan, const ExecutionOptions& options);

/// Runs `batch` through `step`, `batch_size` rows at a time; errors say which step and rows.
[[nodiscard]] Batches run_step(const Step& step, StepRunner& runner, const Batches& batches, const StepContext& context);
/// The step at work; asynchronous ones wait for their reply.
[[nodiscard]] std::unique_ptr<StepRunner> make_runner(const Step& step);

/// The columns that the plan makes; runs the first rows where steps do not say.
[[nodiscard]] std::shared_ptr<arrow::Schema> plan_schema(const Plan& plan);

/// Lets every row function whose schema nobody gave see its first rows.
void resolve_schemas(const Plan& plan);

[[nodiscard]] std::int64_t num_rows(const Batches& batches);
[[nodiscard]] std::int64_t num_bytes(const Batches& batches);
/// One batch of many, of one schema. Throws Failure{DataMalformed} naming the columns that differ.
[[nodiscard]] Batch concatenate(const Batches& batches);

}  // namespace troupe::detail

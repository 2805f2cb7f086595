#pragma once

#include <troupe/dataset/columns.hpp>
#include <troupe/dataset/cursor.hpp>
#include <troupe/dataset/expression.hpp>
#include <troupe/dataset/row.hpp>
#include <troupe/dataset/source.hpp>
#include <troupe/dataset/stage.hpp>
#include <troupe/dataset/stream.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace arrow {
class Table;
}

namespace troupe {

namespace detail {
struct Plan;
}
class DatasetShard;
struct ParquetWriteOptions;

/// Rows from a source and what is to be done with them: nothing is read before somebody asks for rows. A value, cheap to copy; all functions
/// return a new one. The same program makes the same data set on every rank, and each rank reads its own part of it: no rank, and no process
/// beside them, stands in the path of a batch.
///
/// User functions must be deterministic and must not depend on other blocks: rows are made again when a run is resumed.
/// Threads: any number. Errors: wrong arguments throw Failure{InvalidArgument} at once; what goes wrong with rows comes out of the stream.
class Dataset {
 public:
  explicit Dataset(std::shared_ptr<const Source> source);

  // --- steps that work on rows by themselves; all keep the order ---
  /// Each block through `function`. Must return as many rows as it gets unless `changes_num_rows`.
  [[nodiscard]] Dataset map_batches(BatchFunction function, StepOptions options = {}) const;
  /// The same with a function of its own for every thread, made there by `make`: tokenizers, decoders with state.
  [[nodiscard]] Dataset map_batches_each(std::function<BatchFunction()> make, StepOptions options = {}) const;
  /// The same by a function that answers later; `concurrency` batches at a time (at least 1).
  [[nodiscard]] Dataset map_batches_async(AsyncBatchFunction function, StepOptions options = {}) const;
  [[nodiscard]] Dataset map(std::function<Record(const Row&)> function, StepOptions options = {}) const;
  [[nodiscard]] Dataset flat_map(std::function<std::vector<Record>(const Row&)> function, StepOptions options = {}) const;
  /// The rows for which `keep(row)` holds.
  template <typename Keep>
    requires std::is_invocable_r_v<bool, const Keep&, const Row&>
  [[nodiscard]] Dataset filter(Keep keep, StepOptions options = {}) const {
    return filter_rows(std::move(keep), std::move(options));
  }
  /// The rows that meet a condition on their columns, without a function call a row: filter(col("length") > 3).
  [[nodiscard]] Dataset filter(const Expression& condition) const;
  /// Adds a computed column, or replaces the one of that name.
  [[nodiscard]] Dataset with_column(std::string name, const Expression& value) const;
  /// The columns named, in this order; where they are the first step after a source, only they are read.
  [[nodiscard]] Dataset select_columns(std::vector<std::string> columns) const;
  [[nodiscard]] Dataset drop_columns(std::vector<std::string> columns) const;
  [[nodiscard]] Dataset rename_columns(std::map<std::string, std::string> new_names) const;
  [[nodiscard]] Dataset add_column(std::string name, std::function<Value(const Row&)> function, StepOptions options = {}) const;

  // --- order ---
  /// The source's fragments (files, row groups) in another order every epoch. Costs nothing; Ray's name.
  [[nodiscard]] Dataset randomize_block_order(std::uint64_t seed) const;
  /// Rows are permuted within windows of `rows` source rows, another way every epoch. A window is held in memory, beside the budget.
  /// With `randomize_block_order` before it this is what training from large files needs.
  [[nodiscard]] Dataset shuffle_windows(std::int64_t rows, std::uint64_t seed) const;
  /// All rows are permuted, another way every epoch. Each rank runs the data set once an epoch and writes its share to temporary files.
  [[nodiscard]] Dataset random_shuffle(std::uint64_t seed) const;
  /// `times` passes as one epoch, each with its own order where the order was set before.
  [[nodiscard]] Dataset repeat(std::int64_t times) const;

  // --- rows of the whole data set ---
  /// The first `rows` rows. Not after `shuffle_windows` (Failure{Unsupported}): put it before, or `materialize` first.
  [[nodiscard]] Dataset limit(std::int64_t rows) const;
  /// Row i of this beside row i of `other`: columns of both, a name of `other` that is taken gets "_1". Both must have as many rows.
  [[nodiscard]] Dataset zip(const Dataset& other) const;
  /// The rows of this, then those of `other`; both of one schema. (`union` is a word of the language.)
  [[nodiscard]] Dataset union_with(const Dataset& other) const;
  /// Parts of about these fractions (which sum to at most 1), by a hash of seed and row number: no row is in two, whatever is appended later.
  [[nodiscard]] std::vector<Dataset> random_split(const std::vector<double>& fractions, std::uint64_t seed) const;
  /// Stable. Runs the data set when rows are first needed, on every rank; beyond `options.memory_bytes` with temporary files.
  [[nodiscard]] Dataset sort(std::vector<SortKey> keys, SortOptions options = {}) const;
  /// A row for each distinct combination of `keys`, sorted by them; computed when rows are first needed, on every rank.
  [[nodiscard]] Dataset group_by(std::vector<std::string> keys, std::vector<Aggregate> aggregates) const;
  /// All rows run through `function` as one table, in memory, when they are first needed, on every rank: the door for what is not here.
  /// @param schema of the result.
  [[nodiscard]] Dataset whole_table(std::string name, std::function<std::shared_ptr<arrow::Table>(const std::shared_ptr<arrow::Table>&)> function,
                                    std::shared_ptr<arrow::Schema> schema) const;

  // --- running it ---
  [[nodiscard]] std::shared_ptr<arrow::Schema> schema() const;
  /// Rows of an epoch. Without running anything where metadata and steps say it.
  [[nodiscard]] std::int64_t count() const;
  [[nodiscard]] std::vector<Record> take(std::int64_t rows) const;
  [[nodiscard]] std::shared_ptr<arrow::Table> to_table() const;
  /// Runs everything now and keeps the rows of epoch 0: in memory, and beyond `memory_bytes` in a temporary file that no crash leaves behind.
  [[nodiscard]] Dataset materialize(std::int64_t memory_bytes = std::int64_t{1} << 30, const ExecutionOptions& execution = {}) const;
  /// All rows into files of `directory`; their paths. See write_parquet in <troupe/dataset/sinks.hpp> for what a crash leaves.
  [[nodiscard]] std::vector<std::string> write_parquet(const std::string& directory) const;
  [[nodiscard]] std::vector<std::string> write_parquet(const std::string& directory, const ParquetWriteOptions& options) const;
  /// Counts what the steps make of every fragment, once, so that rows can be split equally after filter and flat_map. Steps before it run on the
  /// threads that read. Not after `shuffle_windows`.
  [[nodiscard]] Dataset counted() const;

  [[nodiscard]] DatasetStream stream(const StreamOptions& options = {}) const;
  /// Goes on where cursors say: one, of the same rank and world size; or those of all ranks, when the group has another size: what is left of the
  /// epoch is then dealt anew. `options.epoch` is not used. Throws Failure{InvalidArgument} when the cursors are of another data set, or not of all
  /// ranks.
  [[nodiscard]] DatasetStream resume(const std::vector<DatasetCursor>& cursors, const StreamOptions& options = {}) const;
  /// One part for each of `world_size` ranks; Ray's name.
  [[nodiscard]] std::vector<DatasetShard> streaming_split(int world_size, SplitEqual equal) const;
  /// How many rows `options.rank` gets in `epoch`; counts rows where it must. Throws Failure{Unsupported} where steps change the number of rows.
  [[nodiscard]] std::int64_t num_rows(const SplitOptions& options, std::int64_t epoch = 0) const;

  /// The stages of the stream that was started last from this data set or a copy of it.
  [[nodiscard]] std::string stats() const;
  /// Identifies source, steps and seeds (functions by the name in their options).
  [[nodiscard]] std::string fingerprint() const;
  [[nodiscard]] const std::shared_ptr<const detail::Plan>& plan() const { return plan_; }

 private:
  explicit Dataset(std::shared_ptr<const detail::Plan> plan);
  [[nodiscard]] Dataset filter_rows(std::function<bool(const Row&)> keep, StepOptions options) const;
  std::shared_ptr<const detail::Plan> plan_;
};

/// One rank's part of a data set.
class DatasetShard {
 public:
  DatasetShard(Dataset dataset, SplitOptions split) : dataset_(std::move(dataset)), split_(std::move(split)) {}
  [[nodiscard]] const Dataset& dataset() const { return dataset_; }
  [[nodiscard]] const SplitOptions& split() const { return split_; }
  [[nodiscard]] DatasetStream stream(std::int64_t epoch = 0, const ExecutionOptions& execution = {}) const;
  [[nodiscard]] DatasetStream resume(const std::vector<DatasetCursor>& cursors, const ExecutionOptions& execution = {}) const;
  [[nodiscard]] std::int64_t num_rows(std::int64_t epoch = 0) const { return dataset_.num_rows(split_, epoch); }

 private:
  Dataset dataset_;
  SplitOptions split_;
};

}  // namespace troupe

#include <arrow/array.h>
#include <arrow/compute/api_vector.h>
#include <arrow/datum.h>
#include <arrow/record_batch.h>
#include <arrow/util/byte_size.h>

#include <troupe/dataset/columns.hpp>

#include <algorithm>

#include "arrow_errors.hpp"
#include "spill_file.hpp"
#include "types.hpp"

namespace troupe {

namespace cp = arrow::compute;
using detail::value;

namespace {

constexpr std::int64_t kMaxRunBytes = std::int64_t{1} << 30;  ///< Arrow's offsets within a column of strings have 31 bits
constexpr const char* kWhat = "sort";

/// The order of the rows, as indices.
std::shared_ptr<arrow::UInt64Array> order_of(const RecordBatchPtr& rows, const cp::SortOptions& order) {
  return std::static_pointer_cast<arrow::UInt64Array>(value(cp::SortIndices(arrow::Datum{rows}, order), kWhat, Errc::InvalidArgument));
}

RecordBatchPtr take(const RecordBatchPtr& rows, const std::shared_ptr<arrow::Array>& indices) {
  return value(cp::Take(arrow::Datum{rows}, arrow::Datum{indices}, cp::TakeOptions::NoBoundsCheck()), kWhat, Errc::Internal).record_batch();
}

/// Rows that are sorted in memory as long as they fit, else run by run on disk; then merged.
class Sorter {
 public:
  Sorter(BatchStream rows, cp::SortOptions order, SortOptions options) : rows_(std::move(rows)), order_(std::move(order)), options_(std::move(options)) {}

  RecordBatchPtr next() {
    if (!started_) start();
    while (sorted_ && at_ == sorted_->num_rows()) {
      sorted_.reset();
      if (!runs_.empty()) merge();
    }
    if (!sorted_) return nullptr;
    auto block = sorted_->Slice(at_, options_.block_rows);
    at_ += block->num_rows();
    return block;
  }

 private:
  struct Run {
    std::shared_ptr<arrow::RecordBatchReader> reader;
    RecordBatchPtr pending;  ///< nullptr: at its end
  };

  /// Sorting holds the rows twice, and the indices: a run is a third of the memory.
  std::int64_t run_bytes() const { return std::clamp<std::int64_t>(options_.memory_bytes / 3, 1, kMaxRunBytes); }

  void start() {
    started_ = true;
    arrow::RecordBatchVector held;
    std::int64_t bytes = 0;
    while (auto batch = rows_.next()) {
      if (batch->num_rows() == 0) continue;
      bytes += value(arrow::util::ReferencedBufferSize(*batch), kWhat, Errc::Internal);
      held.push_back(std::move(batch));
      if (bytes < run_bytes()) continue;
      spill(sort(held), bytes);
      held.clear();
      bytes = 0;
    }
    rows_.next = nullptr;
    if (!spill_) {
      sorted_ = held.empty() ? nullptr : sort(held);
      return;
    }
    if (!held.empty()) spill(sort(held), bytes);
    held.clear();
    for (auto& run : runs_) load(run);
    merge();
  }

  RecordBatchPtr sort(const arrow::RecordBatchVector& batches) {
    const auto all = value(arrow::ConcatenateRecordBatches(batches), kWhat, Errc::OutOfMemory);
    return take(all, order_of(all, order_));
  }

  void spill(const RecordBatchPtr& rows, std::int64_t bytes) {
    if (!spill_) spill_ = std::make_unique<detail::SpillFile>(options_.spill_directory);
    // While they are merged, a batch of every run is in memory, and all of these once more when they are sorted.
    const auto batch_bytes = std::clamp<std::int64_t>(options_.memory_bytes / 64, 64 << 10, 1 << 20);
    const auto batch_rows = std::max<std::int64_t>(1, batch_bytes * rows->num_rows() / std::max<std::int64_t>(1, bytes));
    runs_.push_back({spill_->write_run(rows, batch_rows), nullptr});
  }

  static void load(Run& run) {
    do {
      run.pending = value(run.reader->Next(), "reading sorted rows", Errc::StorageUnavailable);
    } while (run.pending && run.pending->num_rows() == 0);
  }

  /// Sorts what is loaded of all runs, in their order (so it is stable), and hands out what cannot be preceded by rows not yet loaded: those up to the
  /// first run's end among them, since a run's other rows all come behind its last loaded one.
  void merge() {
    std::erase_if(runs_, [](const Run& run) { return !run.pending; });
    if (runs_.empty()) return;
    arrow::RecordBatchVector pending;
    std::vector<std::int64_t> ends;
    std::int64_t all = 0;
    for (const auto& run : runs_) {
      pending.push_back(run.pending);
      ends.push_back(all += run.pending->num_rows());
    }
    const auto rows = value(arrow::ConcatenateRecordBatches(pending), kWhat, Errc::OutOfMemory);
    const auto order = order_of(rows, order_);
    std::vector<std::int64_t> used(runs_.size());
    std::int64_t safe = 0;
    while (safe < all) {
      const auto index = static_cast<std::int64_t>(order->Value(safe++));
      const auto run = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), index) - ends.begin());
      if (++used[run] == runs_[run].pending->num_rows()) break;
    }
    sorted_ = take(rows, order->Slice(0, safe));
    at_ = 0;
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      runs_[i].pending = runs_[i].pending->Slice(used[i]);
      if (runs_[i].pending->num_rows() == 0) load(runs_[i]);
    }
  }

  BatchStream rows_;
  cp::SortOptions order_;
  SortOptions options_;
  bool started_ = false;
  std::unique_ptr<detail::SpillFile> spill_;
  std::vector<Run> runs_;
  RecordBatchPtr sorted_;
  std::int64_t at_ = 0;
};

}  // namespace

BatchStream sort(BatchStream rows, std::vector<SortKey> keys, SortOptions options) {
  if (keys.empty()) throw Failure{Errc::InvalidArgument, "sort without a key"};
  if (options.block_rows < 1 || options.memory_bytes < 1) throw Failure{Errc::InvalidArgument, "sort: block_rows and memory_bytes must be at least 1"};
  detail::start_compute();
  std::vector<cp::SortKey> order;
  for (const auto& key : keys) {
    (void)detail::column_index(*rows.schema, key.column, kWhat);
    order.emplace_back(key.column, key.descending ? cp::SortOrder::Descending : cp::SortOrder::Ascending);
  }
  auto schema = rows.schema;
  auto sorter = std::make_shared<Sorter>(std::move(rows), cp::SortOptions{std::move(order)}, std::move(options));
  return {std::move(schema), [sorter] { return sorter->next(); }};
}

}  // namespace troupe

#include <arrow/array/builder_primitive.h>
#include <arrow/record_batch.h>
#include <arrow/table.h>
#include <arrow/util/byte_size.h>

#include <algorithm>
#include <numeric>

#include "../columns/arrow_errors.hpp"
#include "../columns/types.hpp"
#include "files.hpp"

namespace troupe {

namespace {

/// Fragments of as many rows each, the last one of what is left.
std::vector<Fragment> cut(std::int64_t num_rows, std::int64_t fragment_rows, const std::string& name, std::int64_t row_bytes) {
  if (fragment_rows < 1) throw Failure{Errc::InvalidArgument, "fragment_rows must be at least 1"};
  std::vector<Fragment> fragments;
  for (std::int64_t begin = 0; begin < num_rows; begin += fragment_rows) {
    const auto rows = std::min(fragment_rows, num_rows - begin);
    fragments.push_back({name + ", rows " + std::to_string(begin) + "-" + std::to_string(begin + rows), rows, rows * row_bytes});
  }
  return fragments;
}

/// Rows that are made when they are asked for.
class RowsReader final : public FragmentReader {
 public:
  using Make = std::function<std::shared_ptr<arrow::RecordBatch>(std::int64_t begin, std::int64_t rows)>;  ///< at most so many rows
  RowsReader(Make make, std::int64_t fragment, std::int64_t first_row, std::int64_t num_rows, std::int64_t block_rows) : make_(std::move(make)), fragment_(fragment), row_(std::clamp<std::int64_t>(first_row, 0, num_rows)), num_rows_(num_rows), block_rows_(std::max<std::int64_t>(1, block_rows)) {}

  std::optional<Block> next() override {
    if (row_ >= num_rows_) return std::nullopt;
    Block block;
    block.fragment = fragment_;
    block.rows = make_(row_, std::min(block_rows_, num_rows_ - row_));
    block.first_source_row = row_;
    block.num_source_rows = block.rows->num_rows();
    row_ += block.num_source_rows;
    return block;
  }

 private:
  Make make_;
  std::int64_t fragment_;
  std::int64_t row_;
  std::int64_t num_rows_;
  std::int64_t block_rows_;
};

class TableSource final : public Source {
 public:
  TableSource(const std::shared_ptr<arrow::Table>& table, std::int64_t fragment_rows) : schema_(detail::plain(*table->schema())), fragment_rows_(fragment_rows) {
    arrow::TableBatchReader reader{*table};
    while (auto rows = detail::value(reader.Next(), "table", Errc::Internal)) {
      begins_.push_back(num_rows_);
      num_rows_ += rows->num_rows();
      batches_.push_back(detail::value(detail::plain(rows, schema_), "table", Errc::Internal));
      num_bytes_ += arrow::util::TotalBufferSize(*batches_.back());
    }
    fragments_ = cut(num_rows_, fragment_rows, "table", num_rows_ == 0 ? 0 : num_bytes_ / num_rows_);
  }

  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::int64_t count_rows(std::int64_t fragment) const override { return *fragments_.at(static_cast<std::size_t>(fragment)).num_rows; }
  std::string fingerprint() const override { return "table, " + std::to_string(num_rows_) + " rows, " + detail::digest(schema_->ToString() + std::to_string(fragment_rows_)); }

  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    std::vector<int> columns;
    for (const auto& name : options.columns) columns.push_back(detail::column_index(*schema_, name, "table"));
    const auto make = [batches = batches_, begins = begins_, first = fragment * fragment_rows_, columns](std::int64_t begin, std::int64_t rows) {
      const auto at = static_cast<std::size_t>(std::upper_bound(begins.begin(), begins.end(), first + begin) - begins.begin()) - 1;
      auto slice = batches[at]->Slice(first + begin - begins[at], rows);
      return columns.empty() ? slice : detail::value(slice->SelectColumns(columns), "table", Errc::Internal);
    };
    return std::make_unique<RowsReader>(make, fragment, first_row, count_rows(fragment), options.block_rows);
  }

 private:
  std::shared_ptr<arrow::Schema> schema_;
  std::int64_t fragment_rows_;
  arrow::RecordBatchVector batches_;
  std::vector<std::int64_t> begins_;  ///< rows before each batch
  std::int64_t num_rows_ = 0;
  std::int64_t num_bytes_ = 0;
  std::vector<Fragment> fragments_;
};

class RangeSource final : public Source {
 public:
  RangeSource(std::int64_t num_rows, std::int64_t fragment_rows) : fragment_rows_(fragment_rows), num_rows_(num_rows), fragments_(cut(num_rows, fragment_rows, "range", 8)) {
    if (num_rows < 0) throw Failure{Errc::InvalidArgument, "num_rows must be at least 0"};
  }
  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::int64_t count_rows(std::int64_t fragment) const override { return *fragments_.at(static_cast<std::size_t>(fragment)).num_rows; }
  std::string fingerprint() const override { return "range, " + std::to_string(num_rows_) + " rows, " + std::to_string(fragment_rows_); }

  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    for (const auto& name : options.columns) (void)detail::column_index(*schema_, name, "range");
    const auto make = [schema = schema_, first = fragment * fragment_rows_](std::int64_t begin, std::int64_t rows) {
      std::vector<std::int64_t> ids(static_cast<std::size_t>(rows));
      std::iota(ids.begin(), ids.end(), first + begin);
      arrow::Int64Builder builder;
      detail::check(builder.AppendValues(ids), "range", Errc::OutOfMemory);
      return arrow::RecordBatch::Make(schema, rows, {detail::value(builder.Finish(), "range", Errc::OutOfMemory)});
    };
    return std::make_unique<RowsReader>(make, fragment, first_row, count_rows(fragment), options.block_rows);
  }

 private:
  std::shared_ptr<arrow::Schema> schema_ = arrow::schema({arrow::field("id", arrow::int64())});
  std::int64_t fragment_rows_;
  std::int64_t num_rows_;
  std::vector<Fragment> fragments_;
};

}  // namespace

std::shared_ptr<const Source> table_source(std::shared_ptr<arrow::Table> table, std::int64_t fragment_rows) {
  if (!table) throw Failure{Errc::InvalidArgument, "table_source without a table"};
  return std::make_shared<TableSource>(table, fragment_rows);
}

std::shared_ptr<const Source> range_source(std::int64_t num_rows, std::int64_t fragment_rows) { return std::make_shared<RangeSource>(num_rows, fragment_rows); }

}  // namespace troupe

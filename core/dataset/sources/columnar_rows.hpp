#pragma once

#include <arrow/type_fwd.h>

#include <troupe/dataset/source.hpp>

#include <functional>
#include <memory>
#include <string>

namespace troupe::detail {

/// What readers of columnar formats share: rows that are passed over, rows with strings that are no UTF-8, rows lost in a damaged part.
class ColumnarReader : public FragmentReader {
 public:
  /// @param where "a.parquet, row group 3"
  ColumnarReader(std::string where, std::int64_t fragment, std::int64_t first_row, std::int64_t num_rows, std::shared_ptr<arrow::Schema> schema, ReadOptions options);
  std::optional<Block> next() final;

 protected:
  /// The next rows with the columns of `schema`, at most `block_rows`; nullptr at the end. Whoever throws Failure{FileCorrupt} loses the rest of the fragment.
  [[nodiscard]] virtual std::shared_ptr<arrow::RecordBatch> read() = 0;
  /// Passes over up to `rows` rows and says over how many; 0 where the format cannot without reading.
  [[nodiscard]] virtual std::int64_t skip(std::int64_t /*rows*/) { return 0; }

  const std::string where_;
  const std::shared_ptr<arrow::Schema> schema_;
  const ReadOptions options_;

 private:
  Block block(std::shared_ptr<arrow::RecordBatch> rows, std::int64_t num_source_rows);
  std::shared_ptr<arrow::RecordBatch> without_bad_strings(std::shared_ptr<arrow::RecordBatch> rows);
  void bad(const std::string& where, const std::string& why, std::int64_t num_rows);

  std::int64_t fragment_;
  std::int64_t first_row_;
  std::int64_t row_ = 0;
  std::int64_t num_rows_;
  std::shared_ptr<arrow::RecordBatch> rest_;  ///< of what was read
};

}  // namespace troupe::detail

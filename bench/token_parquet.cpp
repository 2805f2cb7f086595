#include "token_parquet.hpp"

#include <arrow/array.h>
#include <arrow/buffer.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <troupe/dataset/sinks.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <numeric>

namespace troupe::bench {

namespace {

std::shared_ptr<arrow::Array> numbers(std::vector<std::int64_t> values) {
  const auto size = static_cast<std::int64_t>(values.size());
  return std::make_shared<arrow::Int64Array>(size, arrow::Buffer::FromVector(std::move(values)));
}

RecordBatchPtr rows_from(const SchemaPtr& schema, std::int64_t begin, std::int64_t size, const TokenParquet& options) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(size * options.ids_per_row));
  std::vector<std::int64_t> labels(static_cast<std::size_t>(size));
  for (std::int64_t row = 0; row < size; ++row) {
    for (std::int32_t i = 0; i < options.ids_per_row; ++i) ids[static_cast<std::size_t>(row * options.ids_per_row + i)] = token_at(begin + row, i, options.vocabulary);
    labels[static_cast<std::size_t>(row)] = label_at(begin + row);
  }
  const auto& type = schema->field(0)->type();
  auto values = numbers(std::move(ids));
  std::shared_ptr<arrow::Array> lists;
  if (options.lists) {
    std::vector<std::int32_t> offsets(static_cast<std::size_t>(size) + 1);
    for (std::size_t i = 0; i < offsets.size(); ++i) offsets[i] = static_cast<std::int32_t>(i) * options.ids_per_row;
    lists = std::make_shared<arrow::ListArray>(type, size, arrow::Buffer::FromVector(std::move(offsets)), values);
  } else {
    lists = std::make_shared<arrow::FixedSizeListArray>(type, size, values);
  }
  return arrow::RecordBatch::Make(schema, size, {lists, numbers(std::move(labels))});
}

}  // namespace

std::vector<std::string> write_token_parquet(const std::string& directory, const TokenParquet& options) {
  if (options.num_rows < 1 || options.num_files < 1 || options.ids_per_row < 1 || options.row_group_rows < 1) throw Failure{Errc::InvalidArgument, "write_token_parquet: numbers must be at least 1"};
  const auto schema = arrow::schema({arrow::field("ids", options.lists ? arrow::list(arrow::int64()) : arrow::fixed_size_list(arrow::int64(), options.ids_per_row)), arrow::field("label", arrow::int64())});
  auto at = std::make_shared<std::int64_t>(0);
  const auto step = std::min<std::int64_t>(options.row_group_rows, 8192);
  const BatchStream rows{schema, [=]() -> RecordBatchPtr {
                           const auto size = std::min(step, options.num_rows - *at);
                           if (size == 0) return nullptr;
                           auto batch = rows_from(schema, *at, size, options);
                           *at += size;
                           return batch;
                         }};
  ParquetWriteOptions write;
  write.files.rows_per_file = (options.num_rows + options.num_files - 1) / options.num_files;
  write.row_group_rows = options.row_group_rows;
  write.compression = options.plain ? "none" : "snappy";
  write.dictionary = !options.plain;
  return write_parquet(rows, directory, write);
}

}  // namespace troupe::bench

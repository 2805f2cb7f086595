#include <arrow/record_batch.h>
#include <arrow/table.h>

#include <troupe/dataset/columns.hpp>

#include "arrow_errors.hpp"

namespace troupe {

BatchStream stream_of(const std::shared_ptr<arrow::Table>& table) {
  auto reader = std::make_shared<arrow::TableBatchReader>(table);
  return {table->schema(), [reader] { return detail::value(reader->Next(), "table", Errc::Internal); }};
}

std::shared_ptr<arrow::Table> collect(BatchStream rows) {
  arrow::RecordBatchVector all;
  while (auto batch = rows.next()) all.push_back(std::move(batch));
  return detail::value(arrow::Table::FromRecordBatches(rows.schema, all), "collect", Errc::Internal);
}

std::int64_t count(BatchStream rows) {
  std::int64_t all = 0;
  while (const auto batch = rows.next()) all += batch->num_rows();
  return all;
}

}  // namespace troupe

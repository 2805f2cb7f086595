#include "column_tensors.hpp"

#include <troupe/errors.hpp>

#include <arrow/record_batch.h>
#include <arrow/type.h>

namespace troupe {

namespace {

const arrow::Array& column_of(const arrow::RecordBatch& rows, std::string_view name) {
  const auto place = rows.schema()->GetFieldIndex(std::string(name));
  if (place >= 0) return *rows.column(place);
  std::string names;
  for (const auto& field : rows.schema()->fields()) names += (names.empty() ? "" : ", ") + field->name();
  throw Failure{Errc::NotFound, "the batch has no column '" + std::string(name) + "'; it has: " + names};
}

}  // namespace

BatchColumns::BatchColumns(std::shared_ptr<arrow::RecordBatch> rows, ColumnPadding padding) : rows_(std::move(rows)), padding_(std::move(padding)) {}

std::int64_t BatchColumns::num_rows() const { return rows_->num_rows(); }
std::vector<std::string> BatchColumns::names() const { return rows_->schema()->field_names(); }
bool BatchColumns::has(std::string_view column) const { return rows_->schema()->GetFieldIndex(std::string(column)) >= 0; }

at::Tensor BatchColumns::tensor(std::string_view column) const {
  const auto found = padding_.find(column);
  return detail::tensor_of(column_of(*rows_, column), column, found == padding_.end() ? Padding{} : found->second);
}

at::Tensor BatchColumns::lengths(std::string_view column) const { return detail::lengths_of(column_of(*rows_, column), column); }
std::vector<std::string_view> BatchColumns::strings(std::string_view column) const { return detail::strings_of(column_of(*rows_, column), column); }

Batch BatchColumns::to_batch() const {
  Batch batch;
  for (const auto& name : names()) batch.set(name, tensor(name));
  return batch;
}

}  // namespace troupe

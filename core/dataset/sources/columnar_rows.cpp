#include "columnar_rows.hpp"

#include <arrow/array.h>
#include <arrow/array/validate.h>
#include <arrow/record_batch.h>
#include <arrow/util/byte_size.h>

#include <algorithm>

#include "../columns/arrow_errors.hpp"

namespace troupe::detail {

namespace {

bool has_strings(const arrow::DataType& type) {
  return type.id() == arrow::Type::STRING || type.id() == arrow::Type::LARGE_STRING || std::any_of(type.fields().begin(), type.fields().end(), [](const auto& field) { return has_strings(*field->type()); });
}

/// Of the whole column, or of one row.
arrow::Status check_strings(const arrow::Array& column) {
  if (column.type_id() == arrow::Type::STRING) return static_cast<const arrow::StringArray&>(column).ValidateUTF8();
  if (column.type_id() == arrow::Type::LARGE_STRING) return static_cast<const arrow::LargeStringArray&>(column).ValidateUTF8();
  return has_strings(*column.type()) ? column.ValidateFull() : arrow::Status::OK();
}

}  // namespace

ColumnarReader::ColumnarReader(std::string where, std::int64_t fragment, std::int64_t first_row, std::int64_t num_rows, std::shared_ptr<arrow::Schema> schema, ReadOptions options)
    : where_(std::move(where)), schema_(std::move(schema)), options_(std::move(options)), fragment_(fragment), first_row_(std::clamp<std::int64_t>(first_row, 0, num_rows)), num_rows_(num_rows) {}

std::optional<Block> ColumnarReader::next() {
  try {
    while (row_ < first_row_) {
      const auto skipped = skip(first_row_ - row_);
      row_ += skipped;
      if (skipped == 0) break;
    }
    while (row_ < num_rows_) {
      if (!rest_) rest_ = read();
      if (!rest_) throw Failure{Errc::FileCorrupt, where_ + " ends after " + std::to_string(row_) + " of " + std::to_string(num_rows_) + " rows"};
      if (rest_->num_rows() > num_rows_ - row_) throw Failure{Errc::FileCorrupt, where_ + " has more than the " + std::to_string(num_rows_) + " rows that its metadata says"};
      const auto passed = std::clamp<std::int64_t>(first_row_ - row_, 0, rest_->num_rows());
      row_ += passed;
      if (passed == rest_->num_rows()) {
        rest_.reset();
        continue;
      }
      const auto taken = std::min(options_.block_rows, rest_->num_rows() - passed);
      auto rows = rest_->Slice(passed, taken);
      rest_ = passed + taken < rest_->num_rows() ? rest_->Slice(passed + taken) : nullptr;
      auto good = without_bad_strings(std::move(rows));
      row_ += taken;
      return block(std::move(good), taken);
    }
  } catch (const Failure& failure) {
    if (failure.code() != Errc::FileCorrupt || !options_.on_bad_row) throw;
    const auto lost = num_rows_ - std::max(row_, first_row_);
    const auto first = std::max(row_, first_row_);
    row_ = num_rows_;
    const auto text = std::string{failure.what()};
    bad(where_ + ", from row " + std::to_string(first) + " on", text.starts_with(where_ + ": ") ? text.substr(where_.size() + 2) : text, lost);
    Block gap;
    gap.rows = value(arrow::RecordBatch::MakeEmpty(schema_), where_, Errc::Internal);
    gap.fragment = fragment_;
    gap.first_source_row = first;
    gap.num_source_rows = lost;
    return gap;
  }
  return std::nullopt;
}

Block ColumnarReader::block(std::shared_ptr<arrow::RecordBatch> rows, std::int64_t num_source_rows) {
  Block made;
  made.rows = std::move(rows);
  made.fragment = fragment_;
  made.first_source_row = row_ - num_source_rows;
  made.num_source_rows = num_source_rows;
  return made;
}

std::shared_ptr<arrow::RecordBatch> ColumnarReader::without_bad_strings(std::shared_ptr<arrow::RecordBatch> rows) {
  std::vector<bool> bad_rows;
  for (int i = 0; i < rows->num_columns(); ++i) {
    const auto& column = rows->column(i);
    if (check_strings(*column).ok()) continue;
    for (std::int64_t row = 0; row < rows->num_rows(); ++row) {
      if (check_strings(*column->Slice(row, 1)).ok()) continue;
      bad_rows.resize(static_cast<std::size_t>(rows->num_rows()));
      if (bad_rows[static_cast<std::size_t>(row)]) continue;
      bad_rows[static_cast<std::size_t>(row)] = true;
      bad(where_ + ", row " + std::to_string(row_ + row), "column '" + rows->schema()->field(i)->name() + "' is not valid UTF-8", 1);
    }
  }
  if (bad_rows.empty()) return rows;
  arrow::RecordBatchVector good;
  for (std::int64_t begin = 0; begin < rows->num_rows();) {
    auto end = begin;
    while (end < rows->num_rows() && !bad_rows[static_cast<std::size_t>(end)]) ++end;
    if (end > begin) good.push_back(rows->Slice(begin, end - begin));
    begin = end + 1;
  }
  if (good.empty()) return rows->Slice(0, 0);
  return value(arrow::ConcatenateRecordBatches(good), where_, Errc::Internal);
}

void ColumnarReader::bad(const std::string& where, const std::string& why, std::int64_t num_rows) {
  if (!options_.on_bad_row) throw Failure{Errc::DataMalformed, where + ": " + why};
  options_.on_bad_row({where, why, num_rows});
}

}  // namespace troupe::detail

#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace arrow {
class RecordBatch;
class Schema;
}  // namespace arrow

namespace troupe {

/// One value of a row; `std::monostate` is null. Integers of every width are widened, float to double, dates and times are their
/// integers, binary is a string of bytes. Columns of other types can only be used by `map_batches`.
using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<std::int64_t>, std::vector<double>,
                           std::vector<std::string>>;

/// A row of a batch, seen in place. Valid as long as the batch lives.
class Row {
 public:
  Row(const arrow::RecordBatch& batch, std::int64_t index) : batch_(&batch), index_(index) {}

  /// The value of `column`. Throws Failure{NotFound} naming the columns there are, Failure{Unsupported} on a type that Value has not.
  [[nodiscard]] Value value(std::string_view column) const;
  /// The value as T: bool, std::int64_t, double (also from integers), std::string or a vector of them.
  /// Throws Failure{DataMalformed} on null or another type.
  template <typename T>
  [[nodiscard]] T get(std::string_view column) const;
  [[nodiscard]] bool is_null(std::string_view column) const;
  [[nodiscard]] const arrow::RecordBatch& batch() const { return *batch_; }
  [[nodiscard]] std::int64_t index() const { return index_; }

 private:
  const arrow::RecordBatch* batch_;
  std::int64_t index_;
};

/// A row with its own values, in the order in which columns were set.
class Record {
 public:
  Record() = default;
  Record(std::initializer_list<std::pair<std::string, Value>> values) : values_(values) {}
  /// All columns of `row`.
  explicit Record(const Row& row);

  /// The value of `column`, which is added as null where it is missing.
  Value& operator[](std::string_view column);
  /// Throws Failure{NotFound}.
  [[nodiscard]] const Value& at(std::string_view column) const;
  [[nodiscard]] const std::vector<std::pair<std::string, Value>>& values() const { return values_; }
  bool operator==(const Record&) const = default;

 private:
  std::vector<std::pair<std::string, Value>> values_;
};

/// int64, double, utf8 and lists of them, as the values are. Throws Failure{InvalidArgument} where a value is null: its type is unknown.
[[nodiscard]] std::shared_ptr<arrow::Schema> schema_of(const Record& record);

/// `records` as columns of `schema`; integers are narrowed and widened to the column's type where the value fits. A missing column is null.
/// Throws Failure{DataMalformed} naming the column on a value of another type, or a column that the schema has not.
[[nodiscard]] std::shared_ptr<arrow::RecordBatch> to_record_batch(const std::vector<Record>& records, const std::shared_ptr<arrow::Schema>& schema);

/// The batch's rows one by one.
[[nodiscard]] std::vector<Record> to_records(const arrow::RecordBatch& batch);

}  // namespace troupe

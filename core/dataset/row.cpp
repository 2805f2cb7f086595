#include <troupe/dataset/row.hpp>

#include <arrow/array.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>
#include <arrow/util/float16.h>

#include <troupe/errors.hpp>

#include <algorithm>

namespace troupe {

namespace {

[[noreturn]] void no_column(std::string_view column, const arrow::Schema& schema) {
  std::string names;
  for (const auto& field : schema.fields()) names += (names.empty() ? "" : ", ") + field->name();
  throw Failure{Errc::NotFound, "there is no column \"" + std::string{column} + "\" but " + (names.empty() ? "none at all" : names)};
}

template <typename T>
std::int64_t wide(const arrow::Array& array, std::int64_t i) {
  return static_cast<std::int64_t>(static_cast<const T&>(array).Value(i));
}

template <typename T>
std::string bytes(const arrow::Array& array, std::int64_t i) {
  return std::string{static_cast<const T&>(array).GetView(i)};
}

Value scalar_value(const arrow::Array& array, std::int64_t i);

Value list_value(const arrow::Array& values, std::int64_t first, std::int64_t count) {
  const auto fill = [&]<typename T>(std::vector<T> out) -> Value {
    out.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = first; i < first + count; ++i) {
      const Value value = scalar_value(values, i);
      if (!std::holds_alternative<T>(value)) throw Failure{Errc::Unsupported, "a list with nulls has no Value; use map_batches"};
      out.push_back(std::get<T>(value));
    }
    return out;
  };
  switch (values.type_id()) {
    case arrow::Type::HALF_FLOAT: case arrow::Type::FLOAT: case arrow::Type::DOUBLE: return fill(std::vector<double>{});
    case arrow::Type::STRING: case arrow::Type::LARGE_STRING: case arrow::Type::BINARY: case arrow::Type::LARGE_BINARY:
      return fill(std::vector<std::string>{});
    case arrow::Type::INT64: {  // the usual one, at once
      const auto& ints = static_cast<const arrow::Int64Array&>(values);
      if (ints.null_count() == 0) return std::vector<std::int64_t>(ints.raw_values() + first, ints.raw_values() + first + count);
      return fill(std::vector<std::int64_t>{});
    }
    default: return fill(std::vector<std::int64_t>{});
  }
}

Value scalar_value(const arrow::Array& array, std::int64_t i) {
  using Type = arrow::Type;
  if (array.IsNull(i)) return std::monostate{};
  switch (array.type_id()) {
    case Type::BOOL: return static_cast<const arrow::BooleanArray&>(array).Value(i);
    case Type::INT8: return wide<arrow::Int8Array>(array, i);
    case Type::INT16: return wide<arrow::Int16Array>(array, i);
    case Type::INT32: return wide<arrow::Int32Array>(array, i);
    case Type::INT64: return wide<arrow::Int64Array>(array, i);
    case Type::UINT8: return wide<arrow::UInt8Array>(array, i);
    case Type::UINT16: return wide<arrow::UInt16Array>(array, i);
    case Type::UINT32: return wide<arrow::UInt32Array>(array, i);
    case Type::UINT64: return wide<arrow::UInt64Array>(array, i);
    case Type::DATE32: return wide<arrow::Date32Array>(array, i);
    case Type::DATE64: return wide<arrow::Date64Array>(array, i);
    case Type::TIME32: return wide<arrow::Time32Array>(array, i);
    case Type::TIME64: return wide<arrow::Time64Array>(array, i);
    case Type::TIMESTAMP: return wide<arrow::TimestampArray>(array, i);
    case Type::DURATION: return wide<arrow::DurationArray>(array, i);
    case Type::HALF_FLOAT:
      return arrow::util::Float16::FromBits(static_cast<const arrow::HalfFloatArray&>(array).Value(i)).ToDouble();
    case Type::FLOAT: return static_cast<double>(static_cast<const arrow::FloatArray&>(array).Value(i));
    case Type::DOUBLE: return static_cast<const arrow::DoubleArray&>(array).Value(i);
    case Type::STRING: return bytes<arrow::StringArray>(array, i);
    case Type::LARGE_STRING: return bytes<arrow::LargeStringArray>(array, i);
    case Type::BINARY: return bytes<arrow::BinaryArray>(array, i);
    case Type::LARGE_BINARY: return bytes<arrow::LargeBinaryArray>(array, i);
    case Type::FIXED_SIZE_BINARY: return bytes<arrow::FixedSizeBinaryArray>(array, i);
    case Type::DICTIONARY: {
      const auto& coded = static_cast<const arrow::DictionaryArray&>(array);
      return scalar_value(*coded.dictionary(), coded.GetValueIndex(i));
    }
    case Type::LIST: {
      const auto& list = static_cast<const arrow::ListArray&>(array);
      return list_value(*list.values(), list.value_offset(i), list.value_length(i));
    }
    case Type::LARGE_LIST: {
      const auto& list = static_cast<const arrow::LargeListArray&>(array);
      return list_value(*list.values(), list.value_offset(i), list.value_length(i));
    }
    case Type::FIXED_SIZE_LIST: {
      const auto& list = static_cast<const arrow::FixedSizeListArray&>(array);
      return list_value(*list.values(), list.value_offset(i), list.value_length(i));
    }
    default: throw Failure{Errc::Unsupported, "rows have no Value for " + array.type()->ToString() + "; use map_batches"};
  }
}

const arrow::Array& column_of(const arrow::RecordBatch& batch, std::string_view name, std::shared_ptr<arrow::Array>& keep) {
  for (int i = 0; i < batch.num_columns(); ++i)
    if (batch.schema()->field(i)->name() == name) return *(keep = batch.column(i));
  no_column(name, *batch.schema());
}

}  // namespace

Value Row::value(std::string_view column) const {
  std::shared_ptr<arrow::Array> keep;
  return scalar_value(column_of(*batch_, column, keep), index_);
}

bool Row::is_null(std::string_view column) const {
  std::shared_ptr<arrow::Array> keep;
  return column_of(*batch_, column, keep).IsNull(index_);
}

template <typename T>
T Row::get(std::string_view column) const {
  Value got = value(column);
  if (T* wanted = std::get_if<T>(&got)) return std::move(*wanted);
  if constexpr (std::is_same_v<T, double>)
    if (const auto* number = std::get_if<std::int64_t>(&got)) return static_cast<double>(*number);
  std::shared_ptr<arrow::Array> keep;
  throw Failure{Errc::DataMalformed, "column \"" + std::string{column} + "\" is " +
                                         (std::holds_alternative<std::monostate>(got) ? "null" : "of another type") + ", it is of type " +
                                         column_of(*batch_, column, keep).type()->ToString()};
}
template bool Row::get(std::string_view) const;
template std::int64_t Row::get(std::string_view) const;
template double Row::get(std::string_view) const;
template std::string Row::get(std::string_view) const;
template std::vector<std::int64_t> Row::get(std::string_view) const;
template std::vector<double> Row::get(std::string_view) const;
template std::vector<std::string> Row::get(std::string_view) const;

Record::Record(const Row& row) {
  const auto& batch = row.batch();
  for (int i = 0; i < batch.num_columns(); ++i)
    values_.emplace_back(batch.schema()->field(i)->name(), scalar_value(*batch.column(i), row.index()));
}

Value& Record::operator[](std::string_view column) {
  for (auto& [name, value] : values_)
    if (name == column) return value;
  return values_.emplace_back(std::string{column}, Value{}).second;
}

const Value& Record::at(std::string_view column) const {
  for (const auto& [name, value] : values_)
    if (name == column) return value;
  throw Failure{Errc::NotFound, "the record has no column \"" + std::string{column} + "\""};
}

std::vector<Record> to_records(const arrow::RecordBatch& batch) {
  std::vector<Record> records;
  records.reserve(static_cast<std::size_t>(batch.num_rows()));
  for (std::int64_t i = 0; i < batch.num_rows(); ++i) records.emplace_back(Row{batch, i});
  return records;
}

}  // namespace troupe

#include "json_rows.hpp"

#include <arrow/array.h>
#include <arrow/record_batch.h>
#include <arrow/scalar.h>
#include <arrow/type.h>

#include <charconv>
#include <cmath>
#include <string_view>

#include "../columns/arrow_errors.hpp"

namespace troupe::detail {

namespace {

void append_string(std::string_view text, std::string& out) {
  static constexpr char hex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      (out += '\\') += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20) {
      ((out += "\\u00") += hex[byte >> 4]) += hex[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

template <class Number>
void append_number(Number number, std::string& out) {
  if constexpr (std::is_floating_point_v<Number>) {
    if (!std::isfinite(number)) {
      out += "null";
      return;
    }
  }
  char text[32];
  out.append(text, std::to_chars(text, text + sizeof text, number).ptr);
}

void append_value(const arrow::Array& column, std::int64_t row, std::string& out);

void append_items(const arrow::Array& items, std::int64_t begin, std::int64_t end, std::string& out) {
  out += '[';
  for (auto i = begin; i < end; ++i) {
    if (i > begin) out += ',';
    append_value(items, i, out);
  }
  out += ']';
}

template <class List>
void append_list(const arrow::Array& column, std::int64_t row, std::string& out) {
  const auto& list = static_cast<const List&>(column);
  append_items(*list.values(), list.value_offset(row), list.value_offset(row) + list.value_length(row), out);
}

template <class T>
void append_as(const arrow::Array& column, std::int64_t row, std::string& out) {
  append_number(static_cast<const arrow::NumericArray<T>&>(column).Value(row), out);
}

void append_struct(const arrow::StructArray& column, std::int64_t row, std::string& out) {
  out += '{';
  for (int i = 0; i < column.num_fields(); ++i) {
    if (i > 0) out += ',';
    append_string(column.type()->field(i)->name(), out);
    out += ':';
    append_value(*column.field(i), row, out);
  }
  out += '}';
}

void append_value(const arrow::Array& column, std::int64_t row, std::string& out) {
  if (column.IsNull(row)) {
    out += "null";
    return;
  }
  switch (column.type_id()) {
    case arrow::Type::BOOL: out += static_cast<const arrow::BooleanArray&>(column).Value(row) ? "true" : "false"; return;
    case arrow::Type::INT8: return append_as<arrow::Int8Type>(column, row, out);
    case arrow::Type::INT16: return append_as<arrow::Int16Type>(column, row, out);
    case arrow::Type::INT32: return append_as<arrow::Int32Type>(column, row, out);
    case arrow::Type::INT64: return append_as<arrow::Int64Type>(column, row, out);
    case arrow::Type::UINT8: return append_as<arrow::UInt8Type>(column, row, out);
    case arrow::Type::UINT16: return append_as<arrow::UInt16Type>(column, row, out);
    case arrow::Type::UINT32: return append_as<arrow::UInt32Type>(column, row, out);
    case arrow::Type::UINT64: return append_as<arrow::UInt64Type>(column, row, out);
    case arrow::Type::FLOAT: return append_as<arrow::FloatType>(column, row, out);
    case arrow::Type::DOUBLE: return append_as<arrow::DoubleType>(column, row, out);
    case arrow::Type::STRING: return append_string(static_cast<const arrow::StringArray&>(column).GetView(row), out);
    case arrow::Type::LARGE_STRING: return append_string(static_cast<const arrow::LargeStringArray&>(column).GetView(row), out);
    case arrow::Type::LIST: return append_list<arrow::ListArray>(column, row, out);
    case arrow::Type::LARGE_LIST: return append_list<arrow::LargeListArray>(column, row, out);
    case arrow::Type::FIXED_SIZE_LIST: return append_list<arrow::FixedSizeListArray>(column, row, out);
    case arrow::Type::STRUCT: return append_struct(static_cast<const arrow::StructArray&>(column), row, out);
    default: return append_string(value(column.GetScalar(row), "json", Errc::Internal)->ToString(), out);
  }
}

bool has_json(const arrow::DataType& type) {
  switch (type.id()) {
    case arrow::Type::BINARY:
    case arrow::Type::LARGE_BINARY:
    case arrow::Type::FIXED_SIZE_BINARY:
    case arrow::Type::BINARY_VIEW:
    case arrow::Type::MAP:
    case arrow::Type::SPARSE_UNION:
    case arrow::Type::DENSE_UNION: return false;
    default: break;
  }
  for (const auto& field : type.fields()) {
    if (!has_json(*field->type())) return false;
  }
  return true;
}

}  // namespace

void append_json_rows(const arrow::RecordBatch& rows, std::string& out) {
  for (std::int64_t row = 0; row < rows.num_rows(); ++row) {
    out += '{';
    for (int i = 0; i < rows.num_columns(); ++i) {
      if (i > 0) out += ',';
      append_string(rows.schema()->field(i)->name(), out);
      out += ':';
      append_value(*rows.column(i), row, out);
    }
    out += "}\n";
  }
}

void check_json_types(const arrow::Schema& schema) {
  for (const auto& field : schema.fields()) {
    if (!has_json(*field->type())) throw Failure{Errc::Unsupported, "write_json_lines: column '" + field->name() + "' is " + field->type()->ToString() + ", for which there is no JSON; drop or convert it"};
  }
}

}  // namespace troupe::detail

#include <arrow/array.h>
#include <arrow/array/builder_base.h>
#include <arrow/builder.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <troupe/dataset/row.hpp>

#include <limits>

#include "arrow_check.hpp"

namespace troupe {

namespace {

std::shared_ptr<arrow::DataType> type_of(const Value& value, const std::string& column) {
  struct {
    const std::string& column;
    std::shared_ptr<arrow::DataType> operator()(std::monostate) const {
      throw Failure{Errc::InvalidArgument, "the type of column \"" + column + "\" cannot be seen from a null; give the step a schema"};
    }
    std::shared_ptr<arrow::DataType> operator()(bool) const { return arrow::boolean(); }
    std::shared_ptr<arrow::DataType> operator()(std::int64_t) const { return arrow::int64(); }
    std::shared_ptr<arrow::DataType> operator()(double) const { return arrow::float64(); }
    std::shared_ptr<arrow::DataType> operator()(const std::string&) const { return arrow::utf8(); }
    std::shared_ptr<arrow::DataType> operator()(const std::vector<std::int64_t>&) const { return arrow::list(arrow::int64()); }
    std::shared_ptr<arrow::DataType> operator()(const std::vector<double>&) const { return arrow::list(arrow::float64()); }
    std::shared_ptr<arrow::DataType> operator()(const std::vector<std::string>&) const { return arrow::list(arrow::utf8()); }
  } visit{column};
  return std::visit(visit, value);
}

/// Appends `value` to a builder of any type that rows can have; false: the type cannot hold it.
bool append(arrow::ArrayBuilder& builder, const Value& value);

template <typename Builder>
bool append_int(arrow::ArrayBuilder& builder, const Value& value) {
  using T = typename Builder::value_type;
  const auto* number = std::get_if<std::int64_t>(&value);
  if (!number) return false;
  if constexpr (sizeof(T) < 8) {
    if (*number < static_cast<std::int64_t>(std::numeric_limits<T>::min()) || *number > static_cast<std::int64_t>(std::numeric_limits<T>::max()))
      return false;
  }
  return static_cast<Builder&>(builder).Append(static_cast<T>(*number)).ok();
}

template <typename Builder>
bool append_float(arrow::ArrayBuilder& builder, const Value& value) {
  using T = typename Builder::value_type;
  if (const auto* number = std::get_if<double>(&value)) return static_cast<Builder&>(builder).Append(static_cast<T>(*number)).ok();
  if (const auto* number = std::get_if<std::int64_t>(&value)) return static_cast<Builder&>(builder).Append(static_cast<T>(*number)).ok();
  return false;
}

template <typename Builder>
bool append_bytes(arrow::ArrayBuilder& builder, const Value& value) {
  const auto* text = std::get_if<std::string>(&value);
  return text && static_cast<Builder&>(builder).Append(*text).ok();
}

bool append_items(arrow::ArrayBuilder& items, const Value& value) {
  const auto each = [&](const auto& list) {
    for (const auto& item : list)
      if (!append(items, Value{item})) return false;
    return true;
  };
  if (const auto* ints = std::get_if<std::vector<std::int64_t>>(&value)) {
    if (items.type()->id() == arrow::Type::INT64)  // the usual one, at once
      return static_cast<arrow::Int64Builder&>(items).AppendValues(*ints).ok();
    return each(*ints);
  }
  if (const auto* numbers = std::get_if<std::vector<double>>(&value)) return each(*numbers);
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) return each(*texts);
  return false;
}

template <typename Builder>
bool append_list(arrow::ArrayBuilder& builder, const Value& value) {
  auto& list = static_cast<Builder&>(builder);
  if (value.index() < 5) return false;  // no list
  return list.Append().ok() && append_items(*list.value_builder(), value);
}

bool append(arrow::ArrayBuilder& builder, const Value& value) {
  using Type = arrow::Type;
  if (std::holds_alternative<std::monostate>(value)) return builder.AppendNull().ok();
  switch (builder.type()->id()) {
    case Type::BOOL: {
      const auto* flag = std::get_if<bool>(&value);
      return flag && static_cast<arrow::BooleanBuilder&>(builder).Append(*flag).ok();
    }
    case Type::INT8: return append_int<arrow::Int8Builder>(builder, value);
    case Type::INT16: return append_int<arrow::Int16Builder>(builder, value);
    case Type::INT32: return append_int<arrow::Int32Builder>(builder, value);
    case Type::INT64: return append_int<arrow::Int64Builder>(builder, value);
    case Type::UINT8: return append_int<arrow::UInt8Builder>(builder, value);
    case Type::UINT16: return append_int<arrow::UInt16Builder>(builder, value);
    case Type::UINT32: return append_int<arrow::UInt32Builder>(builder, value);
    case Type::UINT64: return append_int<arrow::UInt64Builder>(builder, value);
    case Type::DATE32: return append_int<arrow::Date32Builder>(builder, value);
    case Type::DATE64: return append_int<arrow::Date64Builder>(builder, value);
    case Type::TIMESTAMP: return append_int<arrow::TimestampBuilder>(builder, value);
    case Type::FLOAT: return append_float<arrow::FloatBuilder>(builder, value);
    case Type::DOUBLE: return append_float<arrow::DoubleBuilder>(builder, value);
    case Type::STRING: return append_bytes<arrow::StringBuilder>(builder, value);
    case Type::LARGE_STRING: return append_bytes<arrow::LargeStringBuilder>(builder, value);
    case Type::BINARY: return append_bytes<arrow::BinaryBuilder>(builder, value);
    case Type::LARGE_BINARY: return append_bytes<arrow::LargeBinaryBuilder>(builder, value);
    case Type::LIST: return append_list<arrow::ListBuilder>(builder, value);
    case Type::LARGE_LIST: return append_list<arrow::LargeListBuilder>(builder, value);
    default: throw Failure{Errc::Unsupported, "rows cannot be made into " + builder.type()->ToString() + "; use map_batches"};
  }
}

const Value& find(const Record& record, std::size_t hint, const std::string& column) {
  static const Value null;
  const auto& values = record.values();
  if (hint < values.size() && values[hint].first == column) return values[hint].second;
  for (const auto& [name, value] : values)
    if (name == column) return value;
  return null;
}

void check_columns(const Record& record, const arrow::Schema& schema) {
  const auto& values = record.values();
  for (std::size_t i = 0; i < values.size(); ++i)
    if (const auto& name = values[i].first;
        (static_cast<int>(i) >= schema.num_fields() || schema.field(static_cast<int>(i))->name() != name) && schema.GetFieldIndex(name) < 0)
      throw Failure{Errc::DataMalformed, "a record has the column \"" + name + "\", which the first record or the step's schema has not"};
}

}  // namespace

std::shared_ptr<arrow::Schema> schema_of(const Record& record) {
  arrow::FieldVector fields;
  for (const auto& [name, value] : record.values()) fields.push_back(arrow::field(name, type_of(value, name)));
  return arrow::schema(std::move(fields));
}

std::shared_ptr<arrow::RecordBatch> to_record_batch(const std::vector<Record>& records, const std::shared_ptr<arrow::Schema>& schema) {
  for (const auto& record : records) check_columns(record, *schema);
  arrow::ArrayVector columns;
  for (std::size_t c = 0; c < static_cast<std::size_t>(schema->num_fields()); ++c) {
    const auto& field = schema->field(static_cast<int>(c));
    auto builder = detail::check(arrow::MakeBuilder(field->type()), "making column \"" + field->name() + "\"");
    detail::check(builder->Reserve(static_cast<std::int64_t>(records.size())), "making column \"" + field->name() + "\"");
    for (const auto& record : records) {
      if (!append(*builder, find(record, c, field->name())))
        throw Failure{Errc::DataMalformed, "a value of column \"" + field->name() + "\" is no " + field->type()->ToString()};
    }
    columns.push_back(detail::check(builder->Finish(), "making column \"" + field->name() + "\""));
  }
  return arrow::RecordBatch::Make(schema, static_cast<std::int64_t>(records.size()), std::move(columns));
}

}  // namespace troupe

#include "types.hpp"

#include <arrow/compute/cast.h>
#include <arrow/compute/initialize.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <troupe/config.hpp>

#include <mutex>

#include "arrow_errors.hpp"

namespace troupe::detail {

namespace {

const std::vector<std::pair<std::string, std::shared_ptr<arrow::DataType>>>& simple_types() {
  static const std::vector<std::pair<std::string, std::shared_ptr<arrow::DataType>>> all{
      {"bool", arrow::boolean()},      {"int8", arrow::int8()},       {"int16", arrow::int16()},     {"int32", arrow::int32()},
      {"int64", arrow::int64()},       {"uint8", arrow::uint8()},     {"uint16", arrow::uint16()},   {"uint32", arrow::uint32()},
      {"uint64", arrow::uint64()},     {"float", arrow::float32()},   {"double", arrow::float64()},  {"string", arrow::utf8()},
      {"binary", arrow::binary()},     {"large_string", arrow::large_utf8()}, {"large_binary", arrow::large_binary()},
      {"date32", arrow::date32()},     {"timestamp", arrow::timestamp(arrow::TimeUnit::MICRO)}};
  return all;
}

}  // namespace

std::shared_ptr<arrow::DataType> type_named(const std::string& name) {
  if (name.starts_with("list<") && name.ends_with('>')) return arrow::list(type_named(name.substr(5, name.size() - 6)));
  std::vector<std::string> names;
  for (const auto& [known, type] : simple_types()) {
    if (known == name) return type;
    names.push_back(known);
  }
  const auto nearest = nearest_name(name, names);
  throw Failure{Errc::InvalidArgument, "there is no column type '" + name + "'" + (nearest.empty() ? "; write int64, double, string, list<int64> …" : "; did you mean '" + nearest + "'?")};
}

int column_index(const arrow::Schema& schema, const std::string& column, const std::string& what) {
  const auto all = schema.GetAllFieldIndices(column);
  if (all.size() == 1) return all.front();
  if (all.size() > 1) throw Failure{Errc::InvalidArgument, what + ": " + std::to_string(all.size()) + " columns are called '" + column + "'"};
  const auto nearest = nearest_name(column, schema.field_names());
  std::string have;
  for (const auto& name : schema.field_names()) have += (have.empty() ? "" : ", ") + name;
  throw Failure{Errc::InvalidArgument, what + ": there is no column '" + column + "'" + (nearest.empty() ? "; there are: " + short_text(have) : "; did you mean '" + nearest + "'?")};
}

std::shared_ptr<arrow::Schema> plain(const arrow::Schema& schema) {
  arrow::FieldVector fields;
  for (const auto& field : schema.fields()) {
    const auto& type = field->type();
    fields.push_back(arrow::field(field->name(), type->id() == arrow::Type::DICTIONARY ? static_cast<const arrow::DictionaryType&>(*type).value_type() : type));
  }
  return arrow::schema(std::move(fields));
}

arrow::Result<std::shared_ptr<arrow::RecordBatch>> plain(const std::shared_ptr<arrow::RecordBatch>& rows, const std::shared_ptr<arrow::Schema>& schema) {
  arrow::ArrayVector columns;
  for (const auto& column : rows->columns()) {
    if (column->type_id() != arrow::Type::DICTIONARY) {
      columns.push_back(column);
      continue;
    }
    start_compute();
    ARROW_ASSIGN_OR_RAISE(auto values, arrow::compute::Cast(*column, static_cast<const arrow::DictionaryType&>(*column->type()).value_type()));
    columns.push_back(std::move(values));
  }
  return arrow::RecordBatch::Make(schema, rows->num_rows(), std::move(columns));
}

void start_compute() {
  static std::once_flag once;
  std::call_once(once, [] { check(arrow::compute::Initialize(), "Arrow's compute functions", Errc::Internal); });
}

std::string difference(const arrow::Schema& there, const arrow::Schema& here) {
  for (const auto& field : there.fields()) {
    const auto other = here.GetFieldByName(field->name());
    if (!other) return "it has no column '" + field->name() + "'";
    if (!other->type()->Equals(*field->type())) return "its column '" + field->name() + "' is " + other->type()->ToString() + ", not " + field->type()->ToString();
  }
  for (const auto& field : here.fields()) {
    if (there.GetAllFieldIndices(field->name()).empty()) return "it has a column '" + field->name() + "' more";
  }
  return there.num_fields() == here.num_fields() ? "" : "two of its columns have one name";
}

}  // namespace troupe::detail

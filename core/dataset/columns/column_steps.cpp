#include <arrow/array/concatenate.h>
#include <arrow/array/util.h>
#include <arrow/compute/api_vector.h>
#include <arrow/compute/expression.h>
#include <arrow/record_batch.h>

#include <troupe/dataset/columns.hpp>

#include <algorithm>

#include "arrow_errors.hpp"
#include "types.hpp"

namespace troupe {

namespace cp = arrow::compute;
using detail::check;
using detail::column_index;

namespace {

/// The expression with its columns and types found in `schema`.
cp::Expression bound_to(const Expression& expression, const arrow::Schema& schema, const std::string& what) {
  detail::start_compute();
  for (const auto& name : expression.columns()) (void)column_index(schema, name, what);
  return detail::value(expression.arrow().Bind(schema), what, Errc::InvalidArgument);
}

arrow::Datum evaluate(const cp::Expression& bound, const RecordBatchPtr& rows, const std::string& what) {
  return detail::value(cp::ExecuteScalarExpression(bound, *rows->schema(), rows), what, Errc::DataMalformed);
}

ColumnStep pick(const SchemaPtr& in, const std::vector<int>& indices) {
  arrow::FieldVector fields;
  for (const int index : indices) fields.push_back(in->field(index));
  auto out = arrow::schema(std::move(fields));
  return {out, [out, indices](const RecordBatchPtr& rows) {
            arrow::ArrayVector columns;
            for (const int index : indices) columns.push_back(rows->column(index));
            return arrow::RecordBatch::Make(out, rows->num_rows(), std::move(columns));
          }};
}

}  // namespace

ColumnStep filter_step(const SchemaPtr& in, const Expression& condition) {
  const auto what = "filter(" + condition.text() + ")";
  const auto bound = bound_to(condition, *in, what);
  if (bound.type()->id() != arrow::Type::BOOL) throw Failure{Errc::InvalidArgument, what + " is " + bound.type()->ToString() + ", not bool"};
  return {in, [bound, what](const RecordBatchPtr& rows) {
            const auto kept = evaluate(bound, rows, what);
            if (kept.is_scalar()) return kept.scalar()->is_valid && kept.scalar_as<arrow::BooleanScalar>().value ? rows : rows->Slice(0, 0);
            return detail::value(cp::Filter(rows, kept), what, Errc::Internal).record_batch();
          }};
}

ColumnStep select_step(const SchemaPtr& in, const std::vector<std::string>& columns) {
  std::vector<int> indices;
  for (const auto& column : columns) indices.push_back(column_index(*in, column, "select"));
  return pick(in, indices);
}

ColumnStep drop_step(const SchemaPtr& in, const std::vector<std::string>& columns) {
  std::vector<bool> dropped(static_cast<std::size_t>(in->num_fields()));
  for (const auto& column : columns) dropped[static_cast<std::size_t>(column_index(*in, column, "drop"))] = true;
  std::vector<int> indices;
  for (int i = 0; i < in->num_fields(); ++i) {
    if (!dropped[static_cast<std::size_t>(i)]) indices.push_back(i);
  }
  return pick(in, indices);
}

ColumnStep rename_step(const SchemaPtr& in, const std::vector<std::pair<std::string, std::string>>& names) {
  auto fields = in->fields();
  for (const auto& [from, to] : names) {
    auto& field = fields[static_cast<std::size_t>(column_index(*in, from, "rename"))];
    field = field->WithName(to);
  }
  auto out = arrow::schema(std::move(fields));
  for (const auto& field : out->fields()) (void)column_index(*out, field->name(), "rename");  // two of one name
  return {out, [out](const RecordBatchPtr& rows) { return arrow::RecordBatch::Make(out, rows->num_rows(), rows->columns()); }};
}

ColumnStep with_column_step(const SchemaPtr& in, const std::string& name, const Expression& value) {
  const auto what = "with_column(" + name + " = " + value.text() + ")";
  const auto bound = bound_to(value, *in, what);
  auto fields = in->fields();
  const int at = in->GetAllFieldIndices(name).empty() ? in->num_fields() : column_index(*in, name, what);
  auto field = arrow::field(name, bound.type()->GetSharedPtr());
  if (at == in->num_fields()) {
    fields.push_back(std::move(field));
  } else {
    fields[static_cast<std::size_t>(at)] = std::move(field);
  }
  auto out = arrow::schema(std::move(fields));
  return {out, [out, bound, at, what](const RecordBatchPtr& rows) {
            const auto made = evaluate(bound, rows, what);
            auto column = made.is_scalar() ? detail::value(arrow::MakeArrayFromScalar(*made.scalar(), rows->num_rows()), what, Errc::Internal) : made.make_array();
            auto columns = rows->columns();
            if (at == rows->num_columns()) {
              columns.push_back(std::move(column));
            } else {
              columns[static_cast<std::size_t>(at)] = std::move(column);
            }
            return arrow::RecordBatch::Make(out, rows->num_rows(), std::move(columns));
          }};
}

}  // namespace troupe

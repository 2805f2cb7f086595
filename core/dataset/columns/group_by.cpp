#include <arrow/acero/exec_plan.h>
#include <arrow/acero/options.h>
#include <arrow/compute/api_aggregate.h>
#include <arrow/compute/api_vector.h>
#include <arrow/datum.h>
#include <arrow/record_batch.h>
#include <arrow/scalar.h>
#include <arrow/table.h>

#include <troupe/dataset/columns.hpp>

#include <exception>

#include "arrow_errors.hpp"
#include "types.hpp"

namespace troupe {

namespace ac = arrow::acero;
namespace cp = arrow::compute;
using detail::column_index;

namespace {

/// A stream as Acero reads it. What the stream throws ends the plan, and is thrown again by whoever ran it.
class StreamReader final : public arrow::RecordBatchReader {
 public:
  explicit StreamReader(BatchStream rows) : rows_(std::move(rows)) {}
  std::shared_ptr<arrow::Schema> schema() const override { return rows_.schema; }
  arrow::Status ReadNext(std::shared_ptr<arrow::RecordBatch>* batch) override {
    try {
      *batch = rows_.next();
      return arrow::Status::OK();
    } catch (...) {
      failed_ = std::current_exception();
      return arrow::Status::Cancelled("the rows failed");
    }
  }
  const std::exception_ptr& failed() const { return failed_; }

 private:
  BatchStream rows_;
  std::exception_ptr failed_;
};

struct Function {
  const char* name;      ///< Arrow's, with "hash_" before it where there are keys
  const char* shown;
};

Function function_of(Aggregate::Kind kind) {
  switch (kind) {
    case Aggregate::Kind::Count: return {"count", "count"};
    case Aggregate::Kind::CountDistinct: return {"count_distinct", "count_distinct"};
    case Aggregate::Kind::Sum: return {"sum", "sum"};
    case Aggregate::Kind::Mean: return {"mean", "mean"};
    case Aggregate::Kind::Min: return {"min", "min"};
    case Aggregate::Kind::Max: return {"max", "max"};
    case Aggregate::Kind::Std: return {"stddev", "std"};
    case Aggregate::Kind::First: return {"first", "first"};
    case Aggregate::Kind::Last: return {"last", "last"};
    case Aggregate::Kind::List: return {"list", "list"};
  }
  throw Failure{Errc::InvalidArgument, "group_by: unknown aggregate"};
}

cp::Aggregate arrow_aggregate(const Aggregate& wanted, const arrow::Schema& schema, bool keyed) {
  const auto function = function_of(wanted.kind);
  const auto name = wanted.name.empty() ? std::string{function.shown} + "(" + wanted.column + ")" : wanted.name;
  const std::string prefix = keyed ? "hash_" : "";
  if (wanted.column.empty()) {
    if (wanted.kind != Aggregate::Kind::Count) throw Failure{Errc::InvalidArgument, "group_by: " + name + " needs a column"};
    return {prefix + "count_all", name};
  }
  (void)column_index(schema, wanted.column, "group_by");
  if (wanted.kind == Aggregate::Kind::List && !keyed) throw Failure{Errc::InvalidArgument, "group_by: " + name + " needs keys"};
  return {prefix + function.name, nullptr, wanted.column, name};
}

std::shared_ptr<arrow::Table> sorted_by(const std::shared_ptr<arrow::Table>& table, const std::vector<std::string>& keys) {
  std::vector<cp::SortKey> order;
  for (const auto& key : keys) order.emplace_back(key);
  const auto indices = detail::value(cp::SortIndices(arrow::Datum{table}, cp::SortOptions{order}), "group_by", Errc::Unsupported);
  return detail::value(cp::Take(arrow::Datum{table}, arrow::Datum{indices}), "group_by", Errc::Internal).table();
}

}  // namespace

std::shared_ptr<arrow::Table> group_by(BatchStream rows, const std::vector<std::string>& keys, const std::vector<Aggregate>& aggregates) {
  if (keys.empty() && aggregates.empty()) throw Failure{Errc::InvalidArgument, "group_by without keys and aggregates"};
  detail::start_compute();
  std::vector<arrow::FieldRef> fields;
  for (const auto& key : keys) {
    (void)column_index(*rows.schema, key, "group_by");
    fields.emplace_back(key);
  }
  std::vector<cp::Aggregate> wanted;
  for (const auto& aggregate : aggregates) wanted.push_back(arrow_aggregate(aggregate, *rows.schema, !keys.empty()));
  const auto reader = std::make_shared<StreamReader>(std::move(rows));
  auto plan = ac::Declaration::Sequence({{"record_batch_reader_source", ac::RecordBatchReaderSourceNodeOptions{reader}}, {"aggregate", ac::AggregateNodeOptions{std::move(wanted), std::move(fields)}}});
  // One thread, since First, Last and List, and sums of floating-point numbers, depend on the order.
  auto made = ac::DeclarationToTable(std::move(plan), /*use_threads=*/false);
  if (reader->failed()) std::rethrow_exception(reader->failed());
  auto table = detail::value(std::move(made), "group_by", Errc::InvalidArgument);
  return keys.empty() ? table : sorted_by(table, keys);
}

std::shared_ptr<arrow::Scalar> aggregate(BatchStream rows, Aggregate::Kind kind, const std::string& column) {
  const auto table = group_by(std::move(rows), {}, {{kind, column, "value"}});
  return detail::value(table->column(0)->GetScalar(0), "aggregate", Errc::Internal);
}

std::shared_ptr<arrow::Table> unique(BatchStream rows, const std::string& column) { return group_by(std::move(rows), {column}, {}); }

}  // namespace troupe

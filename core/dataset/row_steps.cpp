#include <arrow/array.h>
#include <arrow/array/builder_primitive.h>
#include <arrow/compute/api.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <set>

#include "arrow_check.hpp"
#include "plan.hpp"

namespace troupe {

using detail::Batch;
using detail::Plan;
using detail::SchemaSlot;
using detail::Step;
using detail::StepContext;
using detail::StepRunner;

namespace detail {

namespace {

/// Calls `use(row)` for each row; one at which it throws Failure{DataMalformed} is a bad row, told by its place.
template <typename Use>
void each_row(const Batch& rows, const StepContext& context, Use use) {
  for (std::int64_t i = 0; i < rows->num_rows(); ++i) try {
      use(Row{*rows, i});
    } catch (const Failure& failure) {
      if (failure.code() != Errc::DataMalformed || !context.on_bad_row) throw;
      // Only while no step before dropped or added rows is row i of the block known to be row i of the fragment.
      const std::string path = context.path ? *context.path : "rows";
      (*context.on_bad_row)({rows->num_rows() == context.num_rows
                                 ? path + ", row " + std::to_string(context.first_row + i)
                                 : path + ", rows " + std::to_string(context.first_row) + " to " + std::to_string(context.first_row + context.num_rows - 1),
                             failure.what()});
    }
}

std::shared_ptr<arrow::Schema> seen_schema(SchemaSlot& slot, const std::vector<Record>& records) {
  const std::lock_guard lock{slot.mutex};
  if (!slot.schema) {
    if (records.empty()) return arrow::schema({});
    // A null says nothing: the first record that has a value does.
    Record typed = records.front();
    for (const auto& record : records)
      for (const auto& [name, value] : record.values())
        if (std::holds_alternative<std::monostate>(typed[name])) typed[name] = value;
    slot.schema = schema_of(typed);
  }
  return slot.schema;
}

class RecordsRunner : public StepRunner {
 public:
  using Function = std::function<void(const Row&, std::vector<Record>&)>;
  RecordsRunner(Function function, std::shared_ptr<SchemaSlot> slot) : function_(std::move(function)), slot_(std::move(slot)) {}
  Batch run(const Batch& rows, const StepContext& context) override {
    std::vector<Record> records;
    records.reserve(static_cast<std::size_t>(rows->num_rows()));
    each_row(rows, context, [&](const Row& row) { function_(row, records); });
    return to_record_batch(records, seen_schema(*slot_, records));
  }

 private:
  Function function_;
  std::shared_ptr<SchemaSlot> slot_;
};

class FilterRunner : public StepRunner {
 public:
  explicit FilterRunner(std::function<bool(const Row&)> keep) : keep_(std::move(keep)) {}
  Batch run(const Batch& rows, const StepContext& context) override {
    arrow::Int64Builder kept;
    check(kept.Reserve(rows->num_rows()), "filter");
    each_row(rows, context, [&](const Row& row) {
      if (keep_(row)) kept.UnsafeAppend(row.index());
    });
    if (kept.length() == rows->num_rows()) return rows;
    const auto indices = check(kept.Finish(), "filter");
    return check(arrow::compute::Take(arrow::Datum{rows}, arrow::Datum{indices}), "filter").record_batch();
  }

 private:
  std::function<bool(const Row&)> keep_;
};

class AddColumnRunner : public StepRunner {
 public:
  AddColumnRunner(std::string name, std::function<Value(const Row&)> function, std::shared_ptr<SchemaSlot> slot)
      : name_(std::move(name)), function_(std::move(function)), slot_(std::move(slot)) {}
  Batch run(const Batch& rows, const StepContext& context) override {
    std::vector<Record> values;
    arrow::Int64Builder kept;
    check(kept.Reserve(rows->num_rows()), "add_column");
    each_row(rows, context, [&](const Row& row) {
      values.push_back(Record{{name_, function_(row)}});
      kept.UnsafeAppend(row.index());
    });
    Batch rest = rows;
    if (kept.length() != rows->num_rows())
      rest = check(arrow::compute::Take(arrow::Datum{rows}, arrow::Datum{check(kept.Finish(), "add_column")}), "add_column").record_batch();
    const auto made = to_record_batch(values, seen_schema(*slot_, values));
    if (made->num_columns() == 0) return check(rest->AddColumn(rest->num_columns(), name_, check(arrow::MakeArrayOfNull(arrow::null(), rest->num_rows()), "add_column")), "add_column");
    return check(rest->AddColumn(rest->num_columns(), made->schema()->field(0), made->column(0)), "add_column");
  }

 private:
  std::string name_;
  std::function<Value(const Row&)> function_;
  std::shared_ptr<SchemaSlot> slot_;
};

class BatchRunner : public StepRunner {
 public:
  explicit BatchRunner(BatchFunction function) : function_(std::move(function)) {}
  Batch run(const Batch& rows, const StepContext&) override { return function_(rows); }

 private:
  BatchFunction function_;
};

}  // namespace

std::shared_ptr<Plan> with_step(const Plan& plan, Step step) {
  const auto& options = step.options;
  if (options.concurrency < 0 || options.batch_size < 0)
    throw Failure{Errc::InvalidArgument, "step " + step.name() + ": concurrency and batch_size must not be negative"};
  auto next = std::make_shared<Plan>(plan);
  next->shared = std::make_shared<Plan::Shared>();
  next->steps.push_back(std::move(step));
  return next;
}

}  // namespace detail

using detail::with_step;

namespace {

Step record_step(std::string kind, detail::RecordsRunner::Function function, StepOptions options, bool keeps_rows) {
  auto slot = std::make_shared<SchemaSlot>();
  slot->schema = options.schema;
  Step step{std::move(kind), std::move(options), keeps_rows, {}, {}};
  step.slot = slot;
  step.make = [function = std::move(function), slot] { return std::make_unique<detail::RecordsRunner>(function, slot); };
  return step;
}

/// A step over whole batches whose function is ours.
Step column_step(std::string kind, BatchFunction function, std::string arguments) {
  Step step{std::move(kind), {}, true, {}, {}};
  step.make = [function = std::move(function)] { return std::make_unique<detail::BatchRunner>(function); };
  step.arguments = std::move(arguments);
  return step;
}

int index_of(const arrow::Schema& schema, const std::string& column) {
  const int index = schema.GetFieldIndex(column);
  if (index < 0) throw Failure{Errc::NotFound, "there is no column \"" + column + "\" in (" + schema.ToString() + ")"};
  return index;
}

}  // namespace

Dataset Dataset::map_batches(BatchFunction function, StepOptions options) const {
  return map_batches_each([function = std::move(function)] { return function; }, std::move(options));
}

Dataset Dataset::map_batches_each(std::function<BatchFunction()> make, StepOptions options) const {
  Step step{"map_batches", std::move(options), true, {}, {}};
  step.keeps_rows = !step.options.changes_num_rows;
  step.make = [make = std::move(make)] { return std::make_unique<detail::BatchRunner>(make()); };
  return Dataset{with_step(*plan_, std::move(step))};
}

Dataset Dataset::map_batches_async(AsyncBatchFunction function, StepOptions options) const {
  Step step{"map_batches", std::move(options), true, {}, std::move(function)};
  step.keeps_rows = !step.options.changes_num_rows;
  step.options.concurrency = std::max(step.options.concurrency, 1);
  return Dataset{with_step(*plan_, std::move(step))};
}

Dataset Dataset::map(std::function<Record(const Row&)> function, StepOptions options) const {
  const auto call = [function = std::move(function)](const Row& row, std::vector<Record>& out) { out.push_back(function(row)); };
  return Dataset{with_step(*plan_, record_step("map", call, std::move(options), true))};
}

Dataset Dataset::flat_map(std::function<std::vector<Record>(const Row&)> function, StepOptions options) const {
  const auto call = [function = std::move(function)](const Row& row, std::vector<Record>& out) {
    for (auto& record : function(row)) out.push_back(std::move(record));
  };
  return Dataset{with_step(*plan_, record_step("flat_map", call, std::move(options), false))};
}

Dataset Dataset::filter(std::function<bool(const Row&)> keep, StepOptions options) const {
  Step step{"filter", std::move(options), false, {}, {}};
  step.make = [keep = std::move(keep)] { return std::make_unique<detail::FilterRunner>(keep); };
  return Dataset{with_step(*plan_, std::move(step))};
}

Dataset Dataset::add_column(std::string name, std::function<Value(const Row&)> function, StepOptions options) const {
  auto slot = std::make_shared<SchemaSlot>();
  if (options.schema) {
    slot->schema = arrow::schema({options.schema->field(index_of(*options.schema, name))});
    options.schema = nullptr;  // of the column, not of the step's result
  }
  Step step{"add_column", std::move(options), true, {}, {}};
  step.slot = slot;
  step.arguments = name;
  step.make = [name, function = std::move(function), slot] { return std::make_unique<detail::AddColumnRunner>(name, function, slot); };
  return Dataset{with_step(*plan_, std::move(step))};
}

Dataset Dataset::select_columns(std::vector<std::string> columns) const {
  if (columns.empty()) throw Failure{Errc::InvalidArgument, "select_columns needs a column"};
  if (plan_->steps.empty() && plan_->columns.empty()) {
    for (const auto& column : columns) static_cast<void>(index_of(*plan_->source->schema(), column));
    auto plan = std::make_shared<Plan>(*plan_);
    plan->shared = std::make_shared<Plan::Shared>();
    plan->columns = std::move(columns);
    return Dataset{std::move(plan)};
  }
  std::string arguments;
  for (const auto& column : columns) arguments += column + " ";
  return Dataset{with_step(*plan_, column_step("select_columns",
                                               [columns = std::move(columns)](const Batch& rows) {
                                                 std::vector<int> indices;
                                                 for (const auto& column : columns) indices.push_back(index_of(*rows->schema(), column));
                                                 return detail::check(rows->SelectColumns(indices), "select_columns");
                                               },
                                               arguments))};
}

Dataset Dataset::drop_columns(std::vector<std::string> columns) const {
  std::string arguments;
  for (const auto& column : columns) arguments += column + " ";
  return Dataset{with_step(*plan_, column_step("drop_columns",
                                               [columns = std::move(columns)](const Batch& rows) {
                                                 std::set<int> dropped;
                                                 for (const auto& column : columns) dropped.insert(index_of(*rows->schema(), column));
                                                 std::vector<int> kept;
                                                 for (int i = 0; i < rows->num_columns(); ++i)
                                                   if (!dropped.contains(i)) kept.push_back(i);
                                                 return detail::check(rows->SelectColumns(kept), "drop_columns");
                                               },
                                               arguments))};
}

Dataset Dataset::rename_columns(std::map<std::string, std::string> new_names) const {
  std::string arguments;
  for (const auto& [from, to] : new_names) arguments += from + "=" + to + " ";
  return Dataset{with_step(*plan_, column_step("rename_columns",
                                               [new_names = std::move(new_names)](const Batch& rows) {
                                                 std::vector<std::string> names = rows->schema()->field_names();
                                                 for (const auto& [from, to] : new_names)
                                                   names[static_cast<std::size_t>(index_of(*rows->schema(), from))] = to;
                                                 return detail::check(rows->RenameColumns(names), "rename_columns");
                                               },
                                               arguments))};
}

}  // namespace troupe

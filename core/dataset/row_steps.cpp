#include <arrow/array.h>
#include <arrow/array/builder_primitive.h>
#include <arrow/compute/api.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

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

/// A step of the columns library, made for the columns that come.
class ColumnRunner : public StepRunner {
 public:
  explicit ColumnRunner(std::function<ColumnStep(const SchemaPtr&)> make) : make_(std::move(make)) {}
  Batch run(const Batch& rows, const StepContext&) override {
    if (rows->schema() != in_) {
      step_ = make_(rows->schema());
      in_ = rows->schema();
    }
    return step_.apply(rows);
  }

 private:
  std::function<ColumnStep(const SchemaPtr&)> make_;
  SchemaPtr in_;
  ColumnStep step_;
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

/// A step over columns: where nothing before it runs a function, names and types are checked at once.
Step column_step(const Plan& plan, std::string kind, std::function<ColumnStep(const SchemaPtr&)> make, std::string arguments, bool keeps_rows = true) {
  if (plan.steps.empty()) static_cast<void>(make(detail::plan_schema(plan)));
  Step step{std::move(kind), {}, keeps_rows, {}, {}};
  step.make = [make = std::move(make)] { return std::make_unique<detail::ColumnRunner>(make); };
  step.arguments = std::move(arguments);
  return step;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
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

Dataset Dataset::filter_rows(std::function<bool(const Row&)> keep, StepOptions options) const {
  Step step{"filter", std::move(options), false, {}, {}};
  step.make = [keep = std::move(keep)] { return std::make_unique<detail::FilterRunner>(keep); };
  return Dataset{with_step(*plan_, std::move(step))};
}

Dataset Dataset::add_column(std::string name, std::function<Value(const Row&)> function, StepOptions options) const {
  auto slot = std::make_shared<SchemaSlot>();
  if (options.schema) {
    const auto field = options.schema->GetFieldByName(name);
    if (!field) throw Failure{Errc::InvalidArgument, "add_column: the schema has no column \"" + name + "\""};
    slot->schema = arrow::schema({field});
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
  const auto arguments = joined(columns);
  auto step = column_step(*plan_, "select_columns", [columns](const SchemaPtr& in) { return select_step(in, columns); }, arguments);
  if (!plan_->steps.empty() || !plan_->columns.empty()) return Dataset{with_step(*plan_, std::move(step))};
  auto plan = std::make_shared<Plan>(*plan_);
  plan->shared = std::make_shared<Plan::Shared>();
  plan->columns = std::move(columns);
  return Dataset{std::move(plan)};
}

Dataset Dataset::drop_columns(std::vector<std::string> columns) const {
  const auto arguments = joined(columns);
  return Dataset{with_step(*plan_, column_step(*plan_, "drop_columns", [columns](const SchemaPtr& in) { return drop_step(in, columns); }, arguments))};
}

Dataset Dataset::rename_columns(std::map<std::string, std::string> new_names) const {
  std::vector<std::pair<std::string, std::string>> names(new_names.begin(), new_names.end());
  std::string arguments;
  for (const auto& [from, to] : names) arguments += from + "=" + to + " ";
  return Dataset{with_step(*plan_, column_step(*plan_, "rename_columns", [names](const SchemaPtr& in) { return rename_step(in, names); }, arguments))};
}

Dataset Dataset::filter(const Expression& condition) const {
  return Dataset{with_step(*plan_, column_step(*plan_, "filter", [condition](const SchemaPtr& in) { return filter_step(in, condition); }, condition.text(), false))};
}

Dataset Dataset::with_column(std::string name, const Expression& value) const {
  return Dataset{with_step(*plan_, column_step(*plan_, "with_column", [name, value](const SchemaPtr& in) { return with_column_step(in, name, value); },
                                               name + " = " + value.text()))};
}

}  // namespace troupe

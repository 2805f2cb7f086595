#include <troupe/dataset/dataset.hpp>

#include <arrow/record_batch.h>
#include <arrow/table.h>
#include <arrow/type.h>

#include <algorithm>

#include "arrow_check.hpp"
#include "epoch_plan.hpp"
#include "pipeline.hpp"
#include "shares.hpp"

namespace troupe {

using detail::OrderOp;
using detail::Plan;

namespace detail {

namespace {

std::shared_ptr<arrow::Schema> source_schema(const Plan& plan) {
  if (plan.columns.empty()) return plan.source->schema();
  arrow::FieldVector fields;
  for (const auto& column : plan.columns) fields.push_back(plan.source->schema()->GetFieldByName(column));
  return arrow::schema(std::move(fields));
}

/// Runs the first rows through all steps, until some come out at the end; the schema of what does. Runs no more than it must.
std::shared_ptr<arrow::Schema> probe(const Plan& plan) {
  const auto* changing = dynamic_cast<const EpochSource*>(plan.source.get());
  const auto source = changing ? changing->sample() : plan.source;
  std::vector<std::unique_ptr<StepRunner>> runners;
  for (const auto& step : plan.steps) runners.push_back(step.is_window() ? nullptr : make_runner(step));
  const std::function<void(const BadRow&)> ignore = [](const BadRow&) {};  // the stream will meet it again
  const auto through = [&](Batches batches, const std::string& path, std::int64_t first, std::int64_t rows) {
    for (std::size_t i = 0; i < plan.steps.size(); ++i)
      if (runners[i]) batches = run_step(plan.steps[i], *runners[i], batches, {&path, first, rows, &ignore});
    return batches;
  };
  ReadOptions options;
  options.columns = plan.columns;
  options.on_bad_row = ignore;
  for (std::size_t f = 0; f < source->fragments().size(); ++f) {
    UnitReader reader{*source, static_cast<std::int64_t>(f), 0, std::nullopt, 64, options};
    while (auto unit = reader.next()) {
      const auto made = through(unit->batches, source->fragments()[f].path, unit->first_row, unit->last_row - unit->first_row);
      if (num_rows(made) > 0) return made.front()->schema();
    }
  }
  const auto none = check(arrow::RecordBatch::MakeEmpty(source_schema(plan)), "an empty data set");
  const auto made = through({none}, "an empty data set", 0, 0);
  return made.empty() ? none->schema() : made.front()->schema();
}

}  // namespace

std::shared_ptr<arrow::Schema> plan_schema(const Plan& plan) {
  if (plan.steps.empty()) return source_schema(plan);
  const auto& said = plan.steps.back().options.schema;
  return said ? said : probe(plan);
}

void resolve_schemas(const Plan& plan) {
  const bool unknown = std::any_of(plan.steps.begin(), plan.steps.end(), [](const Step& step) {
    if (!step.slot) return false;
    const std::lock_guard lock{step.slot->mutex};
    return !step.slot->schema;
  });
  if (unknown) static_cast<void>(probe(plan));
}

}  // namespace detail

Dataset::Dataset(std::shared_ptr<const Source> source) {
  if (!source) throw Failure{Errc::InvalidArgument, "a data set needs a source"};
  auto plan = std::make_shared<Plan>();
  plan->source = source;
  plan->counts = std::make_shared<detail::RowCounts>(std::move(source));
  plan_ = std::move(plan);
}

Dataset::Dataset(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {}

namespace {

std::shared_ptr<Plan> copy_of(const Plan& plan) {
  auto next = std::make_shared<Plan>(plan);
  next->shared = std::make_shared<Plan::Shared>();
  return next;
}

}  // namespace

Dataset Dataset::randomize_block_order(std::uint64_t seed) const {
  auto plan = copy_of(*plan_);
  plan->order.push_back({0, seed});
  return Dataset{std::move(plan)};
}

Dataset Dataset::repeat(std::int64_t times) const {
  if (times < 1) throw Failure{Errc::InvalidArgument, "repeat needs at least 1 pass; for an endless stream set StreamOptions::num_epochs to -1"};
  auto plan = copy_of(*plan_);
  plan->order.push_back({times, 0});
  return Dataset{std::move(plan)};
}

Dataset Dataset::shuffle_windows(std::int64_t rows, std::uint64_t seed) const {
  if (rows < 1) throw Failure{Errc::InvalidArgument, "a shuffle window has at least one row, not " + std::to_string(rows)};
  auto plan = copy_of(*plan_);
  detail::Step step{"shuffle_windows", {}, true, {}, {}};
  step.window_rows = rows;
  step.seed = seed;
  step.arguments = std::to_string(rows) + " " + std::to_string(seed);
  plan->steps.push_back(std::move(step));
  return Dataset{std::move(plan)};
}

std::shared_ptr<arrow::Schema> Dataset::schema() const {
  {
    const std::lock_guard lock{plan_->shared->mutex};
    if (plan_->shared->schema) return plan_->shared->schema;
  }
  auto schema = detail::plan_schema(*plan_);
  const std::lock_guard lock{plan_->shared->mutex};
  return plan_->shared->schema = std::move(schema);
}

std::int64_t Dataset::num_rows(const SplitOptions& split, std::int64_t epoch) const {
  StreamOptions options;
  options.split = split;
  detail::check_options(*plan_, options);
  if (!plan_->keeps_rows())
    throw Failure{Errc::Unsupported, "a step changes the number of rows: how many a rank gets is known after counted() or materialize()"};
  const auto order = detail::epoch_order(*plan_, static_cast<std::int64_t>(plan_->source->fragments().size()), epoch);
  return detail::rows_of(detail::fresh_share(*plan_, split, order), detail::epoch_counts(*plan_, order));
}

std::int64_t Dataset::count() const {
  if (plan_->keeps_rows()) return num_rows({});
  const std::lock_guard lock{plan_->shared->mutex};
  if (plan_->shared->count < 0) {
    std::int64_t rows = 0;
    detail::Pipeline stream{plan_, {}, std::nullopt, 0, false};
    while (const auto batch = stream.next()) rows += batch->num_rows();
    plan_->shared->count = rows;
  }
  return plan_->shared->count;
}

std::vector<Record> Dataset::take(std::int64_t rows) const {
  StreamOptions options;
  options.execution.num_readers = 1;
  options.execution.memory_budget_bytes = 1;  // no block more than is asked for
  auto stream = this->stream(options);
  std::vector<Record> records;
  while (static_cast<std::int64_t>(records.size()) < rows) {
    const auto batch = stream.next_batch(rows - static_cast<std::int64_t>(records.size()));
    if (!batch) break;
    for (auto& record : to_records(*batch)) records.push_back(std::move(record));
  }
  return records;
}

std::shared_ptr<arrow::Table> Dataset::to_table() const {
  auto stream = this->stream();
  arrow::RecordBatchVector batches;
  while (auto batch = stream.next()) batches.push_back(std::move(batch));
  if (batches.empty()) return detail::check(arrow::Table::MakeEmpty(schema()), "to_table");
  return detail::check(arrow::Table::FromRecordBatches(batches), "to_table");
}

DatasetStream Dataset::stream(const StreamOptions& options) const {
  auto pipeline = std::make_shared<detail::Pipeline>(plan_, options, std::nullopt, 0);
  const std::lock_guard lock{plan_->shared->mutex};
  plan_->shared->latest = pipeline;
  return DatasetStream{std::move(pipeline)};
}

namespace {

void check_cursor(const DatasetCursor& cursor, const DatasetCursor& first, const std::string& fingerprint) {
  if (cursor.fingerprint != fingerprint)
    throw Failure{Errc::InvalidArgument, "the cursor is of another data set: it says \"" + cursor.fingerprint + "\", this one is \"" + fingerprint +
                                             "\" (digits: files and their sizes; then the steps)"};
  if (cursor.world_size != first.world_size || cursor.epoch != first.epoch)
    throw Failure{Errc::InvalidArgument, "cursors of one group are needed: rank " + std::to_string(first.rank) + " stood in epoch " +
                                             std::to_string(first.epoch) + " of " + std::to_string(first.world_size) + " ranks, rank " +
                                             std::to_string(cursor.rank) + " in epoch " + std::to_string(cursor.epoch) + " of " +
                                             std::to_string(cursor.world_size)};
}

}  // namespace

DatasetStream Dataset::resume(const std::vector<DatasetCursor>& cursors, const StreamOptions& options) const {
  if (cursors.empty()) throw Failure{Errc::InvalidArgument, "resuming needs a cursor"};
  const auto& split = options.split;
  const std::string fingerprint = plan_->fingerprint();
  detail::Resumed resumed;
  std::int64_t delivered = 0;
  const auto mine = std::find_if(cursors.begin(), cursors.end(), [&](const DatasetCursor& cursor) {
    return cursor.world_size == split.world_size && cursor.rank == split.rank && cursor.equal == split.equal;
  });
  if (mine != cursors.end()) {
    check_cursor(*mine, *mine, fingerprint);
    resumed = {mine->epoch, mine->remaining, {}};
    delivered = mine->rows_delivered;
  } else {
    const DatasetCursor& first = cursors.front();
    std::vector<bool> seen(static_cast<std::size_t>(first.world_size));
    for (const auto& cursor : cursors) {
      check_cursor(cursor, first, fingerprint);
      seen[static_cast<std::size_t>(cursor.rank)] = true;
      delivered += cursor.rows_delivered;
    }
    const auto missing = std::find(seen.begin(), seen.end(), false) - seen.begin();
    if (cursors.size() != seen.size() || missing != static_cast<std::ptrdiff_t>(seen.size()))
      throw Failure{Errc::InvalidArgument, "to go on with " + std::to_string(split.world_size) + " ranks the cursors of all " +
                                               std::to_string(first.world_size) + " ranks are needed, each once; there are " +
                                               std::to_string(cursors.size()) +
                                               (missing < static_cast<std::ptrdiff_t>(seen.size()) ? ", rank " + std::to_string(missing) + "'s is missing" : "")};
    resumed = {first.epoch, {}, cursors};
    delivered /= split.world_size;
  }
  auto pipeline = std::make_shared<detail::Pipeline>(plan_, options, std::move(resumed), delivered);
  const std::lock_guard lock{plan_->shared->mutex};
  plan_->shared->latest = pipeline;
  return DatasetStream{std::move(pipeline)};
}

std::vector<DatasetShard> Dataset::streaming_split(int world_size, SplitEqual equal) const {
  std::vector<DatasetShard> shards;
  for (int rank = 0; rank < world_size; ++rank) {
    SplitOptions split;
    split.rank = rank;
    split.world_size = world_size;
    split.equal = equal;
    shards.emplace_back(*this, split);
  }
  StreamOptions options;
  if (!shards.empty()) options.split = shards.front().split();
  options.split.world_size = world_size;
  detail::check_options(*plan_, options);
  return shards;
}

std::string Dataset::stats() const {
  std::shared_ptr<detail::Pipeline> latest;
  {
    const std::lock_guard lock{plan_->shared->mutex};
    latest = plan_->shared->latest.lock();
    if (!latest) return plan_->shared->last_stats.empty() ? "no stream was started\n" : plan_->shared->last_stats;
  }
  return latest->stats().to_string();
}

std::string Dataset::fingerprint() const { return plan_->fingerprint(); }

DatasetStream DatasetShard::stream(std::int64_t epoch, const ExecutionOptions& execution) const {
  StreamOptions options;
  options.split = split_;
  options.epoch = epoch;
  options.execution = execution;
  return dataset_.stream(options);
}

DatasetStream DatasetShard::resume(const std::vector<DatasetCursor>& cursors, const ExecutionOptions& execution) const {
  StreamOptions options;
  options.split = split_;
  options.execution = execution;
  return dataset_.resume(cursors, options);
}

}  // namespace troupe

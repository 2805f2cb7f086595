// Operations on all rows of a data set: each makes a new source.

#include <arrow/record_batch.h>
#include <arrow/table.h>

#include <troupe/dataset/sinks.hpp>
#include <troupe/dataset/sources.hpp>

#include <algorithm>
#include <cmath>

#include "arrow_check.hpp"
#include "spill.hpp"

namespace troupe {

using detail::Plan;
using detail::SourcePtr;

namespace {

/// The plan over another source: same steps, `order` only where the new source has not taken it in.
std::shared_ptr<Plan> over(const Plan& plan, SourcePtr source, bool keep_order) {
  auto next = std::make_shared<Plan>(plan);
  next->shared = std::make_shared<Plan::Shared>();
  next->counts = std::make_shared<detail::RowCounts>(source);
  next->source = std::move(source);
  if (!keep_order) next->order.clear();
  return next;
}

/// The rows of a stream one batch after another, for the operations on columns.
BatchStream rows_of(const Dataset& dataset) {
  auto stream = std::make_shared<DatasetStream>(dataset.stream());
  return {dataset.schema(), [stream] { return stream->next(); }};
}

/// Everything that a stream gives, kept.
SourcePtr keep(const BatchStream& rows, std::int64_t memory_bytes, std::string fingerprint) {
  auto store = std::make_shared<detail::SpillStore>(memory_bytes);
  while (const auto batch = rows.next()) store->add(batch);
  return detail::spilled_source(std::move(store), rows.schema, std::move(fingerprint));
}

}  // namespace

Dataset Dataset::limit(std::int64_t rows) const {
  if (rows < 0) throw Failure{Errc::InvalidArgument, "limit of " + std::to_string(rows) + " rows"};
  // Steps that make one row of one are run only for the rows that are wanted, and keep their threads.
  if (plan_->keeps_rows() && plan_->window_rows() == 0)
    return Dataset{over(*plan_, detail::limit_source(detail::ordered_source(*plan_), rows), false)};
  return Dataset{detail::limit_source(detail::as_source(*plan_, "limit"), rows)};
}

Dataset Dataset::zip(const Dataset& other) const {
  return Dataset{detail::zip_source(detail::as_source(*plan_, "zip"), detail::as_source(*other.plan_, "zip"))};
}

Dataset Dataset::union_with(const Dataset& other) const {
  return Dataset{detail::concat_source(detail::as_source(*plan_, "union_with"), detail::as_source(*other.plan_, "union_with"))};
}

Dataset Dataset::random_shuffle(std::uint64_t seed) const {
  if (!plan_->keeps_rows() || plan_->window_rows() > 0) return Dataset{detail::shuffled_source(*this, seed)};
  // The rows are shuffled before the steps that make one row of one: a rank then runs these for its own rows only.
  Plan bare;
  bare.source = plan_->source;
  bare.counts = plan_->counts;
  bare.order = plan_->order;
  bare.columns = plan_->columns;
  auto next = over(*plan_, detail::shuffled_source(Dataset{std::make_shared<const Plan>(bare)}, seed), false);
  next->columns.clear();
  return Dataset{std::move(next)};
}

std::vector<Dataset> Dataset::random_split(const std::vector<double>& fractions, std::uint64_t seed) const {
  double sum = 0;
  for (const double fraction : fractions) {
    if (!(fraction > 0)) throw Failure{Errc::InvalidArgument, "random_split: a fraction is not above 0"};
    sum += fraction;
  }
  if (sum > 1 + 1e-9) throw Failure{Errc::InvalidArgument, "random_split: the fractions sum to " + std::to_string(sum) + ", more than 1"};
  if (dynamic_cast<const detail::EpochSource*>(plan_->source.get()))
    throw Failure{Errc::Unsupported, "random_split after random_shuffle would put a row into another part every epoch: split first"};
  // By the rows' places before any order of fragments, so that they are the same in every epoch.
  const bool through = plan_->keeps_rows();
  const SourcePtr base = through ? plan_->source : detail::as_source_unordered(*plan_, "random_split");
  const auto border = [](double at) { return at >= 1 - 1e-9 ? std::uint64_t{0} : static_cast<std::uint64_t>(std::ldexp(at, 64)); };
  std::vector<Dataset> parts;
  double at = 0;
  for (const double fraction : fractions) {
    const auto part = detail::sample_source(base, seed, border(at), border(at + fraction));
    auto next = over(*plan_, part, true);
    if (!through) {
      next->steps.clear();
      next->columns.clear();
    }
    parts.push_back(Dataset{std::move(next)});
    at += fraction;
  }
  return parts;
}

Dataset Dataset::counted() const {
  auto next = over(*plan_, detail::as_source_unordered(*plan_, "counted"), true);
  next->steps.clear();
  next->columns.clear();
  return Dataset{std::move(next)};
}

Dataset Dataset::materialize(std::int64_t memory_bytes, const ExecutionOptions& execution) const {
  StreamOptions options;
  options.execution = execution;
  auto stream = this->stream(options);
  auto store = std::make_shared<detail::SpillStore>(memory_bytes);
  std::shared_ptr<arrow::Schema> columns;
  while (const auto batch = stream.next()) {
    columns = batch->schema();
    store->add(batch);
  }
  if (!columns) columns = schema();
  return Dataset{detail::spilled_source(std::move(store), columns, "materialized (" + fingerprint() + ")")};
}

Dataset Dataset::whole_table(std::string name, std::function<std::shared_ptr<arrow::Table>(const std::shared_ptr<arrow::Table>&)> function,
                             std::shared_ptr<arrow::Schema> schema) const {
  const std::string fingerprint = name + " (" + this->fingerprint() + ")";
  return Dataset{std::make_shared<detail::LazySource>(schema, fingerprint, [upstream = *this, name, function = std::move(function), schema] {
    const auto table = function(upstream.to_table());
    if (!table || !table->schema()->Equals(*schema, false))
      throw Failure{Errc::DataMalformed, name + ": the function returned other columns than were named: (" + (table ? table->schema()->ToString() : "none") +
                                             "), not (" + schema->ToString() + ")"};
    return table_source(table, 4096);
  })};
}

Dataset Dataset::sort(std::vector<SortKey> keys, SortOptions options) const {
  std::string fingerprint = "sort";
  for (const auto& key : keys) fingerprint += " " + key.column + (key.descending ? " down" : "");
  fingerprint += " (" + this->fingerprint() + ")";
  return Dataset{std::make_shared<detail::LazySource>(schema(), fingerprint, [upstream = *this, keys = std::move(keys), options, fingerprint] {
    return keep(troupe::sort(rows_of(upstream), keys, options), options.memory_bytes, fingerprint);
  })};
}

Dataset Dataset::group_by(std::vector<std::string> keys, std::vector<Aggregate> aggregates) const {
  std::string fingerprint = "group_by";
  for (const auto& key : keys) fingerprint += " " + key;
  for (const auto& one : aggregates) fingerprint += " " + std::to_string(static_cast<int>(one.kind)) + one.column + "=" + one.name;
  fingerprint += " (" + this->fingerprint() + ")";
  // Of no rows at all the result has the same columns.
  const auto empty = detail::check(arrow::Table::MakeEmpty(schema()), "group_by");
  const auto columns = troupe::group_by(stream_of(empty), keys, aggregates)->schema();
  return Dataset{std::make_shared<detail::LazySource>(columns, fingerprint, [upstream = *this, keys = std::move(keys), aggregates = std::move(aggregates)] {
    return table_source(troupe::group_by(rows_of(upstream), keys, aggregates), 4096);
  })};
}

std::vector<std::string> Dataset::write_parquet(const std::string& directory) const { return write_parquet(directory, {}); }
std::vector<std::string> Dataset::write_parquet(const std::string& directory, const ParquetWriteOptions& options) const {
  return troupe::write_parquet(rows_of(*this), directory, options);
}

}  // namespace troupe

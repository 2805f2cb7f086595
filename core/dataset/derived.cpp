#include "derived.hpp"

#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <algorithm>

#include "unit_reader.hpp"

namespace troupe::detail {

Block cut_block(Block block, std::int64_t first, std::int64_t last) {
  const std::int64_t have = block.rows ? block.rows->num_rows() : 0;
  const std::int64_t end = std::min(block.first_source_row + block.num_source_rows, last);
  const std::int64_t begin = std::clamp(first, block.first_source_row, end);
  const std::int64_t from = std::min(begin - block.first_source_row, have);
  const std::int64_t to = std::min(end - block.first_source_row, have);
  if (block.rows && (from > 0 || to < have)) block.rows = block.rows->Slice(from, to - from);
  block.first_source_row = begin;
  block.num_source_rows = end - begin;
  return block;
}

namespace {

/// Another source for every pass, made from those of the pass.
class DerivedSource : public EpochSource {
 public:
  using Make = std::function<SourcePtr(const std::vector<SourcePtr>&)>;
  DerivedSource(std::vector<SourcePtr> from, Make make) : from_(std::move(from)), make_(std::move(make)) {}
  SourcePtr at_pass(std::int64_t pass) const override {
    const std::lock_guard lock{mutex_};
    if (pass_ != pass || !latest_) {
      std::vector<SourcePtr> now;
      for (const auto& source : from_) now.push_back(detail::at_pass(source, pass));
      latest_ = make_(now);
      pass_ = pass;
    }
    return latest_;
  }
  SourcePtr sample() const override {
    std::vector<SourcePtr> now;
    for (const auto& source : from_) {
      const auto* changing = dynamic_cast<const EpochSource*>(source.get());
      now.push_back(changing ? changing->sample() : source);
    }
    return make_(now);
  }
  const std::shared_ptr<arrow::Schema>& schema() const override {
    std::call_once(once_, [this] { schema_ = sample()->schema(); });
    return schema_;
  }
  std::string fingerprint() const override { return at_pass(0)->fingerprint(); }

 private:
  std::vector<SourcePtr> from_;
  Make make_;
  mutable std::mutex mutex_;
  mutable std::int64_t pass_ = -1;
  mutable SourcePtr latest_;
  mutable std::once_flag once_;
  mutable std::shared_ptr<arrow::Schema> schema_;
};

/// Fragments of one source, or of several passes over it, in another order.
class Reordered : public Source {
 public:
  Reordered(SourcePtr base, std::vector<OrderEntry> order, std::string fingerprint) : base_(std::move(base)), order_(std::move(order)), fingerprint_(std::move(fingerprint)) {
    for (const auto& entry : order_) {
      auto& source = passes_[entry.pass];
      if (!source) source = detail::at_pass(base_, entry.pass);
      fragments_.push_back(source->fragments()[static_cast<std::size_t>(entry.fragment)]);
    }
  }
  const std::shared_ptr<arrow::Schema>& schema() const override { return base_->schema(); }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    const auto& entry = order_[static_cast<std::size_t>(fragment)];
    return passes_.at(entry.pass)->open(entry.fragment, first_row, options);
  }
  std::int64_t count_rows(std::int64_t fragment) const override {
    const auto& entry = order_[static_cast<std::size_t>(fragment)];
    return passes_.at(entry.pass)->count_rows(entry.fragment);
  }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  SourcePtr base_;
  std::vector<OrderEntry> order_;
  std::string fingerprint_;
  std::map<std::int64_t, SourcePtr> passes_;
  std::vector<Fragment> fragments_;
};

class OrderedSource : public EpochSource {
 public:
  explicit OrderedSource(Plan plan) : plan_(std::move(plan)) {}
  SourcePtr at_pass(std::int64_t pass) const override {
    const std::lock_guard lock{mutex_};
    if (pass_ != pass || !latest_) {
      latest_ = std::make_shared<Reordered>(plan_.source, epoch_order(plan_, static_cast<std::int64_t>(plan_.source->fragments().size()), pass), fingerprint());
      pass_ = pass;
    }
    return latest_;
  }
  SourcePtr sample() const override {
    const auto* changing = dynamic_cast<const EpochSource*>(plan_.source.get());
    return changing ? changing->sample() : plan_.source;
  }
  const std::shared_ptr<arrow::Schema>& schema() const override { return plan_.source->schema(); }
  std::string fingerprint() const override { return "ordered (" + plan_.fingerprint() + ")"; }

 private:
  Plan plan_;  ///< source and order only
  mutable std::mutex mutex_;
  mutable std::int64_t pass_ = -1;
  mutable SourcePtr latest_;
};

/// A source's rows run through steps, where and when they are read.
class StepsSource : public Source {
 public:
  StepsSource(SourcePtr source, std::vector<std::string> columns, std::vector<Step> steps) {
    plan_.source = std::move(source);
    plan_.counts = std::make_shared<RowCounts>(plan_.source);
    plan_.columns = std::move(columns);
    plan_.steps = std::move(steps);
    keeps_rows_ = plan_.keeps_rows();
    fragments_ = plan_.source->fragments();
    if (!keeps_rows_)
      for (auto& fragment : fragments_) fragment.num_rows.reset();
  }
  const std::shared_ptr<arrow::Schema>& schema() const override {
    std::call_once(once_, [this] { schema_ = plan_schema(plan_); });
    return schema_;
  }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override;
  std::int64_t count_rows(std::int64_t fragment) const override {
    if (keeps_rows_) return plan_.source->count_rows(fragment);
    ReadOptions options;
    options.on_bad_row = [](const BadRow& bad) { throw Failure{Errc::DataMalformed, bad.where + ": " + bad.why}; };
    std::int64_t rows = 0;
    const auto reader = open(fragment, 0, options);
    while (const auto block = reader->next()) rows += block->num_source_rows;
    return rows;
  }
  std::string fingerprint() const override { return "steps (" + plan_.fingerprint() + ")"; }

 private:
  friend class StepsReader;
  Plan plan_;
  bool keeps_rows_ = true;
  std::vector<Fragment> fragments_;
  mutable std::once_flag once_;
  mutable std::shared_ptr<arrow::Schema> schema_;
};

class StepsReader : public FragmentReader {
 public:
  StepsReader(const StepsSource& source, std::int64_t fragment, std::int64_t first_row, const ReadOptions& options)
      : source_(source), fragment_(fragment), first_row_(first_row), columns_(options.columns), on_bad_row_(options.on_bad_row) {
    const Plan& plan = source.plan_;
    resolve_schemas(plan);
    ReadOptions reading = options;
    reading.columns = plan.columns;
    // Always in the same units, whoever reads.
    const std::int64_t unit = rows_per_block(plan.source->fragments()[static_cast<std::size_t>(fragment)], plan, {});
    const std::int64_t from = source.keeps_rows_ ? first_row / unit * unit : 0;
    reader_.emplace(*plan.source, fragment, from, std::nullopt, unit, reading);
    made_ = source.keeps_rows_ ? from : 0;
    for (const auto& step : plan.steps) runners_.push_back(make_runner(step));
  }
  std::optional<Block> next() override {
    const Plan& plan = source_.plan_;
    for (;;) {
      auto unit = reader_->next();
      if (!unit) return std::nullopt;
      const std::int64_t unit_rows = unit->last_row - unit->first_row;
      const StepContext context{&source_.fragments_[static_cast<std::size_t>(fragment_)].path, unit->first_row, unit_rows, &on_bad_row_};
      Batches batches = std::move(unit->batches);
      if (batches.size() > 1) batches = {concatenate(batches)};
      for (std::size_t i = 0; i < plan.steps.size(); ++i) batches = run_step(plan.steps[i], *runners_[i], batches, context);
      Block block;
      block.rows = concatenate(batches);
      block.fragment = fragment_;
      block.first_source_row = made_;
      block.num_source_rows = source_.keeps_rows_ ? unit_rows : num_rows(batches);
      made_ += block.num_source_rows;
      if (made_ <= first_row_ || block.num_source_rows == 0) continue;
      if (block.rows && !columns_.empty()) block.rows = chosen(block.rows);
      return cut_block(std::move(block), first_row_, made_);
    }
  }

 private:
  Batch chosen(const Batch& rows) const {
    std::vector<int> indices;
    for (const auto& column : columns_) indices.push_back(rows->schema()->GetFieldIndex(column));
    auto selected = rows->SelectColumns(indices);
    if (!selected.ok()) throw Failure{Errc::NotFound, "columns: " + selected.status().message()};
    return *selected;
  }
  const StepsSource& source_;
  std::int64_t fragment_;
  std::int64_t first_row_;
  std::vector<std::string> columns_;
  std::function<void(const BadRow&)> on_bad_row_;
  std::optional<UnitReader> reader_;
  std::vector<std::unique_ptr<StepRunner>> runners_;
  std::int64_t made_ = 0;
};

std::unique_ptr<FragmentReader> StepsSource::open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const {
  return std::make_unique<StepsReader>(*this, fragment, first_row, options);
}

}  // namespace

SourcePtr derive(std::vector<SourcePtr> from, std::function<SourcePtr(const std::vector<SourcePtr>&)> make) {
  const bool changes = std::any_of(from.begin(), from.end(), [](const SourcePtr& s) { return dynamic_cast<const EpochSource*>(s.get()) != nullptr; });
  if (!changes) return make(from);
  return std::make_shared<DerivedSource>(std::move(from), std::move(make));
}

SourcePtr ordered_source(const Plan& plan) {
  if (plan.order.empty()) return plan.source;
  Plan bare;
  bare.source = plan.source;
  bare.order = plan.order;
  return std::make_shared<OrderedSource>(std::move(bare));
}

SourcePtr steps_source(SourcePtr source, std::vector<std::string> columns, std::vector<Step> steps) {
  if (columns.empty() && steps.empty()) return source;
  return derive({std::move(source)}, [columns = std::move(columns), steps = std::move(steps)](const std::vector<SourcePtr>& from) {
    return std::make_shared<StepsSource>(from.front(), columns, steps);
  });
}

SourcePtr as_source(const Plan& plan, const std::string& what) {
  if (plan.window_rows() > 0)
    throw Failure{Errc::Unsupported, what + " after shuffle_windows has no meaning: shuffle after it, or call materialize() between them"};
  return steps_source(ordered_source(plan), plan.columns, plan.steps);
}

SourcePtr as_source_unordered(const Plan& plan, const std::string& what) {
  Plan bare = plan;
  bare.order.clear();
  return as_source(bare, what);
}

}  // namespace troupe::detail

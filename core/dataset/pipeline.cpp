#include "pipeline.hpp"

#include <arrow/array.h>
#include <arrow/array/builder_primitive.h>
#include <arrow/compute/api.h>
#include <arrow/record_batch.h>

#include "arrow_check.hpp"
#include "epoch_plan.hpp"

namespace troupe::detail {

Pipeline::Pipeline(std::shared_ptr<const Plan> plan, StreamOptions options, std::optional<Resumed> resumed, std::int64_t rows_delivered, bool keep_stats)
    : plan_(std::move(plan)), keep_stats_(keep_stats), options_(std::move(options)), rows_delivered_(rows_delivered) {
  start_.fingerprint = plan_->fingerprint();
  start_.rank = options_.split.rank;
  start_.world_size = options_.split.world_size;
  start_.equal = options_.split.equal;
  start_.epoch = resumed ? resumed->epoch : options_.epoch;
  engine_ = std::make_shared<Engine>(plan_, options_, std::move(resumed));
  engine_->start();
}

Pipeline::~Pipeline() {
  engine_->close();
  if (!keep_stats_) return;
  const auto text = stats().to_string();
  const std::lock_guard lock{plan_->shared->mutex};
  plan_->shared->last_stats = text;
}

const std::vector<RowRange>& Pipeline::ranges_of(std::int64_t epoch) {
  if (ranges_epoch_ != epoch) {
    std::shared_ptr<const std::vector<RowRange>> planned;
    {
      const std::lock_guard lock{engine_->mutex};
      engine_->ranges.erase(engine_->ranges.begin(), engine_->ranges.lower_bound(epoch));
      const auto found = engine_->ranges.find(epoch);
      if (found != engine_->ranges.end()) planned = found->second;
    }
    if (!planned) {  // asked for before the readers came to it
      const auto order = epoch_order(*plan_, static_cast<std::int64_t>(plan_->source->fragments().size()), epoch);
      planned = std::make_shared<const std::vector<RowRange>>(epoch_ranges(*plan_, options_, engine_->resumed, epoch, order));
    }
    ranges_ = std::move(planned);
    ranges_epoch_ = epoch;
  }
  return *ranges_;
}

bool Pipeline::pull() {
  auto item = engine_->next();
  if (!item) return false;
  switch (item->kind) {
    case Item::Kind::Rows: accept(std::move(*item)); break;
    case Item::Kind::EpochEnd: {
      if (options_.num_epochs < 0 && rows_of_epoch_ == 0)
        throw Failure{Errc::InvalidArgument, "an epoch of the data set has no rows for rank " + std::to_string(options_.split.rank) +
                                                 ": going through it without end never ends"};
      rows_of_epoch_ = 0;
      Part end;
      end.epoch = item->epoch;
      end.ends_epoch = true;
      parts_.push_back(std::move(end));
      break;
    }
    default: break;
  }
  return true;
}

void Pipeline::fill_missing(Item& item) {
  if (!plan_->keeps_rows() || options_.split.world_size == 1 || options_.split.equal == SplitEqual::Uneven) return;
  for (const auto& batch : item.batches)
    if (batch->num_rows() > 0) last_rows_ = batch;
  const std::int64_t missing = item.ends_group ? item.source_rows - made_ - num_rows(item.batches) : 0;
  if (missing <= 0) return;
  if (!last_rows_)
    throw Failure{Errc::DataMalformed, (item.path ? *item.path : std::string{"the data set"}) + ": of " + std::to_string(item.source_rows) +
                                           " rows from row " + std::to_string(item.first.row) + " on none can be read, and ranks must get equally many"};
  arrow::Int64Builder indices;
  for (std::int64_t i = 0; i < missing; ++i) check(indices.Append(last_rows_->num_rows() - 1), "filling in for bad rows");
  item.batches.push_back(check(arrow::compute::Take(arrow::Datum{last_rows_}, arrow::Datum{check(indices.Finish(), "filling in for bad rows")}),
                               "filling in for bad rows")
                             .record_batch());
}

void Pipeline::accept(Item item) {
  if (item.group != group_) {
    group_ = item.group;
    made_ = 0;
    last_rows_ = nullptr;
  }
  fill_missing(item);
  const RowRange range = ranges_of(item.epoch)[item.range];
  Part part;
  part.epoch = item.epoch;
  part.range = item.range;
  part.first = item.first;
  part.last = item.last;
  for (auto& batch : item.batches) {
    const std::int64_t first = std::clamp(range.skip - made_, std::int64_t{0}, batch->num_rows());
    const std::int64_t wanted = range.take < 0 ? batch->num_rows() : std::clamp(range.skip + range.take - made_, first, batch->num_rows());
    const std::int64_t count = std::max<std::int64_t>(wanted - first, 0);
    part.made_before = made_ + first;
    made_ += batch->num_rows();
    if (count == 0) continue;
    part.rows = count == batch->num_rows() ? std::move(batch) : batch->Slice(first, count);
    rows_of_epoch_ += count;
    parts_.push_back(part);
  }
  if (!item.ends_group) return;
  // The last part says that the group is done with; where nothing came of the item, an empty one does.
  if (parts_.empty() || parts_.back().first != part.first || parts_.back().range != part.range || parts_.back().ends_epoch) {
    part.rows = nullptr;
    parts_.push_back(part);
  }
  parts_.back().ends_group = true;
}

Batch Pipeline::take(std::int64_t at_most) {
  Part& part = parts_.front();
  const std::int64_t left = part.rows ? part.rows->num_rows() - part.taken : 0;
  const std::int64_t count = std::min(left, at_most);
  Batch rows;
  if (count > 0) rows = count == part.rows->num_rows() ? part.rows : part.rows->Slice(part.taken, count);
  part.taken += count;
  part.made_before += count;
  if (count > 0 && ranges_of(part.epoch)[part.range].padding) padding_rows_ += count;
  at_.epoch = part.epoch;
  at_.range = part.range;
  at_.first = part.first;
  at_.last = part.last;
  at_.made_before = part.made_before;
  at_.ends_group = part.ends_group && count == left;
  at_.ends_epoch = part.ends_epoch;
  at_.is_set = true;
  if (count == left) parts_.pop_front();
  return rows;
}

void Pipeline::count(const Batch& rows) {
  rows_delivered_ += rows->num_rows();
  const std::lock_guard lock{stats_mutex_};
  rows_ += rows->num_rows();
  ++batches_;
  if (first_batch_.count() == 0) first_batch_ = std::chrono::steady_clock::now() - began_;
}

Batch Pipeline::next() {
  padding_rows_ = 0;
  for (;;) {
    if (parts_.empty()) {
      if (!pull()) return nullptr;
      continue;
    }
    if (Batch rows = take(std::numeric_limits<std::int64_t>::max())) {
      count(rows);
      return rows;
    }
  }
}

Batch Pipeline::next_batch(std::int64_t batch_size, bool drop_last) {
  if (batch_size < 1) throw Failure{Errc::InvalidArgument, "batch_size is " + std::to_string(batch_size)};
  Batches gathered;
  std::int64_t missing = batch_size;
  padding_rows_ = 0;
  Part before = at_;
  try {
    while (missing > 0) {
      if (parts_.empty()) {
        if (!pull()) break;
        continue;
      }
      const bool ends_epoch = parts_.front().ends_epoch;
      if (ends_epoch && !gathered.empty()) {
        if (!drop_last) break;
        gathered.clear();
        missing = batch_size;
        padding_rows_ = 0;
      }
      if (Batch rows = take(missing)) {
        missing -= rows->num_rows();
        gathered.push_back(std::move(rows));
      }
    }
  } catch (...) {
    at_ = std::move(before);  // what was gathered is not handed out
    throw;
  }
  if (gathered.empty() || (drop_last && missing > 0)) return nullptr;
  Batch batch = concatenate(gathered);
  count(batch);
  return batch;
}

DatasetCursor Pipeline::cursor() {
  DatasetCursor cursor = start_;
  cursor.rows_delivered = rows_delivered_;
  if (!at_.is_set) {
    cursor.remaining = ranges_of(cursor.epoch);
    return cursor;
  }
  const Part& at = at_;
  cursor.epoch = at.epoch;
  if (at.ends_epoch) return cursor;
  // Kept by the consumer's thread until the epoch's end, so not asked of the readers again.
  const auto& ranges = ranges_of(at.epoch);
  const RowRange& range = ranges[at.range];
  const bool taken = range.take >= 0 && at.made_before >= range.skip + range.take;
  if (!at.ends_group && !taken) {
    RowRange rest{at.first, at.last, at.made_before, -1, range.padding};
    if (range.take >= 0) rest.take = range.skip + range.take - at.made_before;
    cursor.remaining.push_back(rest);
  }
  if (range.take < 0 && at.last < range.last) cursor.remaining.push_back({at.last, range.last, 0, -1, range.padding});
  cursor.remaining.insert(cursor.remaining.end(), ranges.begin() + static_cast<std::ptrdiff_t>(at.range) + 1, ranges.end());
  return cursor;
}

StreamStats Pipeline::stats() {
  StreamStats stats;
  engine_->fill(stats);
  const std::lock_guard lock{stats_mutex_};
  stats.rows = rows_;
  stats.batches = batches_;
  stats.first_batch = first_batch_;
  stats.age = std::chrono::steady_clock::now() - began_;
  return stats;
}

}  // namespace troupe::detail

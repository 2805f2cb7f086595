#include <arrow/record_batch.h>

#include "epoch_plan.hpp"

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;

/// One fragment's part of a range, or the end of something: what a reader thread takes up at a time.
struct Lane {
  std::shared_ptr<const Source> source;  ///< none: only `ends` are given out
  std::int64_t epoch = 0;
  std::size_t range = 0;
  std::int64_t entry = 0;  ///< in the epoch's order
  std::int64_t fragment = 0;
  std::int64_t first_row = 0;
  std::optional<std::int64_t> last_row;
  std::vector<Item::Kind> ends;  ///< RangeEnd, EpochEnd: after its rows
  std::shared_ptr<const std::string> path;

  // Guarded by the engine's mutex.
  std::deque<Item> ready;
  std::int64_t held = 0;
  bool done = false;
  bool waits_for_credit = false;
  Clock::time_point since;
};

/// Walks through epochs, ranges and fragments.
class LanePlanner {
 public:
  explicit LanePlanner(Engine& engine) : engine_(engine), epoch_(engine.resumed ? engine.resumed->epoch : engine.options.epoch) {}

  /// The next lane; nothing at the end of the stream. May take long: counts rows, prepares shuffles. Called by one thread at a time, without
  /// the lock.
  std::shared_ptr<Lane> next() {
    if (engine_.options.num_epochs >= 0 && num_epochs_ >= engine_.options.num_epochs) return nullptr;
    if (!planned_) {
      planned_ = plan_epoch(*engine_.plan, engine_.options, engine_.resumed, epoch_, engine_.stopping.get_token());
      range_ = 0;
      entry_ = planned_->ranges->empty() ? 0 : planned_->ranges->front().first.fragment;
      const std::lock_guard lock{engine_.mutex};
      engine_.ranges[epoch_] = planned_->ranges;
    }
    auto lane = std::make_shared<Lane>();
    lane->epoch = epoch_;
    lane->since = Clock::now();
    if (range_ >= planned_->ranges->size()) {
      lane->ends = {Item::Kind::EpochEnd};
      next_epoch();
      return lane;
    }
    const RowRange& range = (*planned_->ranges)[range_];
    lane->range = range_;
    lane->entry = entry_;
    const bool whole = entry_ < range.last.fragment;
    if (whole || range.last.row > 0) {
      const auto& entry = planned_->order[static_cast<std::size_t>(entry_)];
      lane->source = planned_->passes.at(entry.pass);
      lane->fragment = entry.fragment;
      lane->first_row = entry_ == range.first.fragment ? range.first.row : 0;
      if (!whole) lane->last_row = range.last.row;
      const Fragment& fragment = lane->source->fragments()[static_cast<std::size_t>(entry.fragment)];
      lane->path = std::make_shared<const std::string>(fragment.path);
      if (fragment.num_rows && *fragment.num_rows <= lane->first_row) lane->source = nullptr;  // nothing in it
    }
    if (whole) ++entry_;
    if (!whole || entry_ > range.last.fragment || (entry_ == range.last.fragment && range.last.row == 0)) {
      lane->ends = {Item::Kind::RangeEnd};
      if (++range_ < planned_->ranges->size())
        entry_ = (*planned_->ranges)[range_].first.fragment;
      else {
        lane->ends.push_back(Item::Kind::EpochEnd);
        next_epoch();
      }
    }
    return lane;
  }

 private:
  void next_epoch() {
    planned_.reset();
    ++epoch_;
    ++num_epochs_;
  }
  Engine& engine_;
  std::int64_t epoch_;
  std::int64_t num_epochs_ = 0;
  std::optional<EpochPlan> planned_;
  std::size_t range_ = 0;
  std::int64_t entry_ = 0;
};

class ReadStage : public Feed {
 public:
  ReadStage(Engine& engine, std::size_t num_steps) : engine_(engine), num_steps_(num_steps), planner_(engine) {
    for (int i = 0; i < engine.options.execution.num_readers; ++i) engine.spawn("read", [this] { work(); });
  }

  bool ready() override {
    while (!lanes_.empty() && lanes_.front()->done && lanes_.front()->ready.empty()) {
      lanes_.pop_front();
      if (!lanes_.empty()) engine_.budget.ahead -= lanes_.front()->held;
      engine_.credit.notify_all();
    }
    return !lanes_.empty() && !lanes_.front()->ready.empty();
  }
  bool ended() override { return !ready() && lanes_.empty() && planned_all_ && !planning_; }

  Item pop() override {
    Lane& lane = *lanes_.front();
    Item item = std::move(lane.ready.front());
    lane.ready.pop_front();
    lane.held -= item.charge;
    return item;
  }

  std::int64_t queued() const override {
    std::int64_t items = 0;
    for (const auto& lane : lanes_) items += static_cast<std::int64_t>(lane->ready.size());
    return items;
  }

  std::optional<std::string> busy_with(Clock::time_point now) const override {
    const auto seconds = [&](Clock::time_point since) {
      return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(now - since).count()) + " ms";
    };
    if (lanes_.empty() || !lanes_.front()->path)
      return "stage plan has counted rows, prepared a shuffle or listed fragments for " + seconds(planning_since_);
    const Lane& lane = *lanes_.front();
    return "stage read has worked on " + *lane.path + " for " + seconds(lane.since) + (lane.waits_for_credit ? " and waits for room in the budget" : "");
  }

 private:
  void work() {
    StepChain chain{engine_, 0, num_steps_};
    std::unique_lock lock{engine_.mutex};
    while (auto lane = next_lane(lock)) {
      std::exception_ptr error;
      lock.unlock();
      try {
        read(*lane, chain);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      chain.flush();
      if (error) {
        planned_all_ = true;  // nothing after it is wanted
        Item item;
        item.kind = Item::Kind::Error;
        item.error = error;
        lane->ready.push_back(std::move(item));
      } else {
        add_ends(*lane);
      }
      lane->done = true;
      changed.notify_all();
      engine_.credit.notify_all();
    }
    changed.notify_all();
  }

  std::shared_ptr<Lane> next_lane(std::unique_lock<std::mutex>& lock) {
    const auto began = Clock::now();
    // A lane's worth of items may wait in front of everything; a stream with nobody taking from it opens no more.
    engine_.credit.wait(lock, [&] { return done() || (!planning_ && !full()); });
    engine_.stats.front().waited_out += Clock::now() - began;
    if (done()) return nullptr;
    planning_ = true;
    planning_since_ = Clock::now();
    lock.unlock();
    std::shared_ptr<Lane> lane;
    std::exception_ptr error;
    try {
      lane = planner_.next();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    planning_ = false;
    if (error) {
      lane = std::make_shared<Lane>();
      Item item;
      item.kind = Item::Kind::Error;
      item.error = error;
      lane->ready.push_back(std::move(item));
      lane->done = true;
    }
    if (!lane || error) planned_all_ = true;
    if (lane) lanes_.push_back(lane);
    engine_.credit.notify_all();
    changed.notify_all();
    return error ? nullptr : lane;
  }

  bool done() const { return engine_.stopped() || planned_all_ || engine_.failed; }
  bool full() const { return lanes_.size() >= 1024 || (lanes_.size() > 1 && engine_.budget.held >= engine_.budget.limit / 2); }

  void add_ends(Lane& lane) {
    for (const auto kind : lane.ends) {
      Item item;
      item.kind = kind;
      item.epoch = lane.epoch;
      item.range = lane.range;
      lane.ready.push_back(std::move(item));
    }
  }

  void read(Lane& lane, StepChain& chain) {
    if (!lane.source) return;
    const Fragment& fragment = lane.source->fragments()[static_cast<std::size_t>(lane.fragment)];
    ReadOptions options;
    options.columns = engine_.plan->columns;
    options.block_bytes = engine_.options.execution.block_bytes;
    options.on_bad_row = engine_.on_bad_row;
    std::optional<UnitReader> reader;
    for (;;) {
      const std::int64_t reserved = reserve(lane);
      if (reserved < 0) return;
      Item item;
      std::optional<Unit> unit;
      const auto began = Clock::now();
      try {
        if (!reader)
          reader.emplace(*lane.source, lane.fragment, lane.first_row, lane.last_row, rows_per_block(fragment, *engine_.plan, engine_.options.execution),
                         std::move(options));
        unit = reader->next();
        if (unit) {
          // Steps see the unit as one batch, however the reader cut it: what they make may depend on which rows come together.
          if (unit->batches.size() > 1 && !engine_.plan->steps.empty()) unit->batches = {concatenate(unit->batches)};
          fill(item, lane, *unit);
          const auto took = Clock::now() - began;
          const std::int64_t rows = num_rows(item.batches);
          const std::int64_t bytes = num_bytes(item.batches);
          chain.run(item);
          const bool failed = item.kind == Item::Kind::Error;
          const std::int64_t charge = std::max<std::int64_t>(num_bytes(item.batches), 1024);
          finish(lane, std::move(item), reserved, charge, std::max(bytes, charge), rows, bytes, took, chain);
          if (failed) return;
        }
      } catch (...) {
        release(reserved, lane);
        throw;
      }
      if (!unit) return release(reserved, lane);
    }
  }

  static void fill(Item& item, const Lane& lane, Unit& unit) {
    item.epoch = lane.epoch;
    item.range = lane.range;
    item.path = lane.path;
    item.batches = std::move(unit.batches);
    item.first = {lane.entry, unit.first_row};
    item.last = unit.ends_fragment ? Position{lane.entry + 1, 0} : Position{lane.entry, unit.last_row};
    item.source_rows = unit.last_row - unit.first_row;
  }

  /// Waits for room for one more unit; -1: the stream is being stopped.
  std::int64_t reserve(Lane& lane) {
    std::unique_lock lock{engine_.mutex};
    Budget& budget = engine_.budget;
    const auto began = Clock::now();
    const auto front = [&] { return !lanes_.empty() && lanes_.front().get() == &lane; };
    const auto room = [&] {
      if (engine_.stopped()) return true;
      const std::int64_t after = budget.held + budget.unit;
      // What is next may always be read when nothing of it waits further on: else a consumer could wait for it for ever.
      if (front()) return after <= budget.limit || budget.held - budget.ahead <= 0;
      return !engine_.failed && after <= budget.limit / 2;
    };
    lane.waits_for_credit = true;
    engine_.credit.wait(lock, room);
    lane.waits_for_credit = false;
    engine_.stats.front().waited_out += Clock::now() - began;
    if (engine_.stopped()) return -1;
    hold(lane, budget.unit);
    return budget.unit;
  }

  void hold(Lane& lane, std::int64_t bytes) {
    engine_.budget.add(bytes);
    lane.held += bytes;
    if (lanes_.empty() || lanes_.front().get() != &lane) engine_.budget.ahead += bytes;
  }

  void release(std::int64_t reserved, Lane& lane) {
    const std::lock_guard lock{engine_.mutex};
    hold(lane, -reserved);
    engine_.credit.notify_all();
  }

  void finish(Lane& lane, Item&& item, std::int64_t reserved, std::int64_t charge, std::int64_t unit_bytes, std::int64_t rows, std::int64_t bytes,
              std::chrono::nanoseconds took, StepChain& chain) {
    const std::lock_guard lock{engine_.mutex};
    item.charge = charge;
    item.group = engine_.groups++;
    hold(lane, charge - reserved);
    // The largest of late: units of one source are much alike.
    engine_.budget.unit = std::max(unit_bytes, engine_.budget.unit - engine_.budget.unit / 16);
    auto& stats = engine_.stats.front();
    ++stats.blocks;
    stats.rows_in += rows;
    stats.rows_out += rows;
    stats.bytes_out += bytes;
    stats.busy += took;
    chain.flush();
    lane.since = Clock::now();
    planned_all_ = planned_all_ || item.kind == Item::Kind::Error;
    lane.ready.push_back(std::move(item));
    changed.notify_all();
  }

  Engine& engine_;
  std::size_t num_steps_;
  LanePlanner planner_;
  std::deque<std::shared_ptr<Lane>> lanes_;  ///< in order; the first one's items go on
  bool planning_ = false;
  bool planned_all_ = false;
  Clock::time_point planning_since_ = Clock::now();
};

}  // namespace

std::unique_ptr<Feed> make_read_stage(Engine& engine, std::size_t num_steps) { return std::make_unique<ReadStage>(engine, num_steps); }

}  // namespace troupe::detail

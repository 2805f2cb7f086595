#include <arrow/array.h>
#include <arrow/buffer.h>
#include <arrow/compute/api.h>
#include <arrow/record_batch.h>

#include "arrow_check.hpp"
#include "engine.hpp"
#include "rng.hpp"

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;

/// Gathers blocks until they stand for a window's source rows, permutes what was made of them, and gives that out block by block.
class WindowStage : public Feed {
 public:
  WindowStage(Engine& engine, Feed& in, std::size_t step) : engine_(engine), in_(in), step_(engine.plan->steps[step]), stat_(step + 1) {
    engine.stats[stat_].concurrency = 1;
    engine.spawn(step_.name(), [this] { work(); });
  }
  bool ready() override { return !out_.empty(); }
  bool ended() override { return out_.empty() && closed_; }
  Item pop() override {
    Item item = std::move(out_.front());
    out_.pop_front();
    if (out_.size() < kMaxOut) drained_.notify_all();
    return item;
  }
  std::int64_t queued() const override { return static_cast<std::int64_t>(out_.size()); }
  std::optional<std::string> busy_with(Clock::time_point now) const override {
    if (!out_.empty() || !permuting_) return std::nullopt;
    return "stage " + step_.name() + " has permuted a window for " +
           std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(now - *permuting_).count()) + " ms";
  }
  void wake() override {
    changed.notify_all();
    drained_.notify_all();
  }

 private:
  static constexpr std::size_t kMaxOut = 4;  ///< blocks that wait behind it; the window itself waits in one piece

  void work() {
    std::unique_lock lock{engine_.mutex};
    for (;;) {
      const auto began = Clock::now();
      in_.changed.wait(lock, [&] { return engine_.stopped() || in_.ready() || in_.ended(); });
      engine_.stats[stat_].waited_in += Clock::now() - began;
      if (engine_.stopped() || !in_.ready()) break;
      engine_.stats[stat_].queued_blocks = in_.queued();
      Item item = in_.pop();
      if (item.kind != Item::Kind::Rows) {
        flush(lock);
        put(std::move(item));
        continue;
      }
      gather(std::move(item));
      if (rows_ >= step_.window_rows && window_->ends_group) flush(lock);
    }
    if (!engine_.stopped()) flush(lock);
    closed_ = true;
    changed.notify_all();
  }

  void gather(Item item) {
    engine_.budget.held -= item.charge;
    engine_.budget.beside += item.charge;
    engine_.credit.notify_all();
    beside_ += item.charge;
    if (item.ends_group) rows_ += item.source_rows;
    ++num_items_;
    for (auto& batch : item.batches)
      if (batch->num_rows() > 0 || gathered_.empty()) gathered_.push_back(std::move(batch));
    item.batches.clear();
    if (!window_) {
      window_ = std::move(item);
    } else {
      window_->last = item.last;
      window_->ends_group = item.ends_group;
    }
  }

  void flush(std::unique_lock<std::mutex>& lock) {
    if (!window_) return;
    Item window = std::move(*window_);
    window_.reset();
    window.source_rows = std::exchange(rows_, 0);
    window.group = engine_.groups++;
    const std::int64_t num_blocks = std::exchange(num_items_, 0);
    const std::int64_t beside = std::exchange(beside_, 0);
    Batches gathered = std::exchange(gathered_, {});
    permuting_ = Clock::now();
    lock.unlock();
    std::exception_ptr error;
    try {
      emit(lock, window, std::move(gathered), num_blocks);
    } catch (...) {
      error = std::current_exception();
    }
    if (!lock.owns_lock()) lock.lock();
    permuting_.reset();
    engine_.budget.beside -= beside;
    if (error) {
      window.kind = Item::Kind::Error;
      window.error = error;
      engine_.failed = true;
      put(std::move(window));
    }
  }

  void emit(std::unique_lock<std::mutex>& lock, const Item& window, Batches gathered, std::int64_t num_blocks) {
    const auto began = Clock::now();
    const Batch all = concatenate(std::exchange(gathered, {}));
    const std::int64_t rows = all ? all->num_rows() : 0;
    const auto seed = mix(step_.seed, static_cast<std::uint64_t>(window.epoch), static_cast<std::uint64_t>(window.first.fragment),
                          static_cast<std::uint64_t>(window.first.row));
    const auto order = permutation(rows, seed);
    const std::int64_t each = std::max<std::int64_t>((rows + num_blocks - 1) / num_blocks, 1);
    std::chrono::nanoseconds busy = Clock::now() - began;
    std::int64_t first = 0;
    do {
      const auto started = Clock::now();
      const std::int64_t count = std::min(each, rows - first);
      Item item = window;
      item.ends_group = first + count >= rows;
      if (count > 0) item.batches = {gather_rows(all, order.data() + first, count)};
      item.charge = std::max<std::int64_t>(num_bytes(item.batches), 1024);
      first += count;
      busy += Clock::now() - started;
      lock.lock();
      auto& stats = engine_.stats[stat_];
      ++stats.blocks;
      stats.rows_in += count;
      stats.rows_out += count;
      stats.bytes_out += item.charge;
      stats.busy += std::exchange(busy, {});
      const auto waiting = Clock::now();
      drained_.wait(lock, [&] { return engine_.stopped() || out_.size() < kMaxOut; });
      stats.waited_out += Clock::now() - waiting;
      engine_.budget.add(item.charge);
      put(std::move(item));
      if (engine_.stopped()) return;
      if (first < rows) lock.unlock();
    } while (first < rows);
  }

  static Batch gather_rows(const Batch& all, const std::int64_t* order, std::int64_t count) {
    const auto indices = std::make_shared<arrow::Int64Array>(count, arrow::Buffer::Wrap(order, static_cast<std::size_t>(count)));
    return check(arrow::compute::Take(arrow::Datum{all}, arrow::Datum{indices}, arrow::compute::TakeOptions::NoBoundsCheck()), "shuffling a window").record_batch();
  }

  void put(Item item) {
    out_.push_back(std::move(item));
    changed.notify_all();
  }

  Engine& engine_;
  Feed& in_;
  const Step& step_;
  std::size_t stat_;
  std::deque<Item> out_;
  std::condition_variable drained_;
  bool closed_ = false;
  std::optional<Clock::time_point> permuting_;
  // Only the stage's thread:
  std::optional<Item> window_;  ///< the first item, with what was added to it
  Batches gathered_;
  std::int64_t rows_ = 0;
  std::int64_t num_items_ = 0;
  std::int64_t beside_ = 0;
};

}  // namespace

std::unique_ptr<Feed> make_window_stage(Engine& engine, Feed& in, std::size_t step) { return std::make_unique<WindowStage>(engine, in, step); }

}  // namespace troupe::detail

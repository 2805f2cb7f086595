#pragma once

#include "plan.hpp"
#include "unit_reader.hpp"

#include <condition_variable>
#include <deque>
#include <thread>

namespace troupe::detail {

/// A resumed stream's own share of its first epoch.
struct Resumed {
  std::int64_t epoch = 0;
  std::vector<RowRange> ranges;
  std::vector<DatasetCursor> dealt_anew;  ///< instead of `ranges`: cursors of a group of another size
};

/// What moves through the stages, in order.
struct Item {
  enum class Kind : std::uint8_t { Rows, RangeEnd, EpochEnd, Error };
  Kind kind = Kind::Rows;
  Batches batches;
  std::int64_t epoch = 0;
  std::size_t range = 0;           ///< index into the epoch's ranges
  Position first;                  ///< the group of source rows that it was made from, or is a part of what was made from:
  Position last;                   ///< a block, or a shuffle window
  std::uint64_t group = 0;
  bool ends_group = true;          ///< nothing more comes of the group
  std::int64_t source_rows = 0;    ///< of the group
  std::int64_t charge = 0;         ///< bytes counted in the budget
  std::shared_ptr<const std::string> path;  ///< of the fragment
  std::exception_ptr error;
};

class Engine;

/// The items that a stage has ready, for the next one. Everything is guarded by the engine's mutex.
class Feed {
 public:
  virtual ~Feed() = default;
  [[nodiscard]] virtual bool ready() = 0;
  [[nodiscard]] virtual bool ended() = 0;
  [[nodiscard]] virtual Item pop() = 0;
  [[nodiscard]] virtual std::int64_t queued() const = 0;
  /// If this stage keeps the consumer waiting: what it is doing. Else the one before it does.
  [[nodiscard]] virtual std::optional<std::string> busy_with(std::chrono::steady_clock::time_point now) const = 0;
  /// Everyone who waits here looks again.
  virtual void wake() { changed.notify_all(); }
  std::condition_variable changed;
};

/// A stage that gives out its items in the order in which it took them, whichever is done first.
class OrderedFeed : public Feed {
 public:
  struct Slot {
    Item item;
    bool done = false;
    std::chrono::steady_clock::time_point since;
  };
  explicit OrderedFeed(Feed& in) : in_(in) {}
  bool ready() override { return !slots_.empty() && slots_.front()->done; }
  bool ended() override { return slots_.empty() && closed_; }
  Item pop() override;
  std::int64_t queued() const override { return static_cast<std::int64_t>(slots_.size()); }
  std::optional<std::string> busy_with(std::chrono::steady_clock::time_point now) const override;

 protected:
  std::shared_ptr<Slot> take_slot();
  void complete(Slot& slot);
  Feed& in_;
  std::string name_;
  std::deque<std::shared_ptr<Slot>> slots_;
  bool closed_ = false;  ///< no more slots will be taken
};

/// Bytes of all items in the stream, and who may add to them.
struct Budget {
  std::int64_t limit = 0;
  std::int64_t held = 0;   ///< from reading to the consumer
  std::int64_t ahead = 0;  ///< of these, read from fragments after the one that is next
  std::int64_t beside = 0; ///< in shuffle windows; nobody waits for these
  std::int64_t peak = 0;
  std::int64_t unit = 0;   ///< about what the next unit will take
  void add(std::int64_t bytes) { held += bytes; peak = std::max(peak, held + beside); }
};

/// The threads and queues of one stream.
///
/// One mutex guards all queues: items are blocks of thousands of rows, so it is taken some thousand times a second.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  Engine(std::shared_ptr<const Plan> plan, StreamOptions options, std::optional<Resumed> resumed);
  ~Engine();
  void start();
  /// Waits for the next item; nothing at the end. Throws what went wrong at that place, Failure{Cancelled} after `stop`,
  /// Failure{DeadlinePassed} when a stage stalls.
  [[nodiscard]] std::optional<Item> next();
  void stop() noexcept;
  /// Stops and waits for all threads; after a stall only briefly: a function that never returns keeps its thread, and what that holds.
  void close() noexcept;
  void fill(StreamStats& stats);

  // --- for the stages ---
  std::mutex mutex;
  std::stop_source stopping;
  Budget budget;
  std::condition_variable credit;  ///< room in the budget, or another fragment is next
  bool failed = false;             ///< an item after which nothing will be wanted
  std::uint64_t groups = 0;
  std::vector<StageStats> stats;   ///< read, then one per step
  const std::shared_ptr<const Plan> plan;
  const StreamOptions options;
  const std::optional<Resumed> resumed;
  std::function<void(const BadRow&)> on_bad_row;
  /// The ranges of each epoch in the stream, for positions.
  std::map<std::int64_t, std::shared_ptr<const std::vector<RowRange>>> ranges;
  [[nodiscard]] bool stopped() const { return stopping.stop_requested(); }
  void spawn(std::string name, std::function<void()> work);
  void warn(const std::string& text) const;

 private:
  void build_stages();
  void bad_row(const BadRow& row);
  std::optional<std::string> stalled_stage();
  std::vector<std::unique_ptr<Feed>> feeds_;
  std::vector<std::thread> threads_;
  std::condition_variable thread_ended_;
  int running_ = 0;
  std::vector<std::function<void()>> starts_;
  std::int64_t skipped_rows_ = 0;
  std::exception_ptr error_;
  bool stalled_ = false;
  std::chrono::nanoseconds waited_{0};
};

/// Steps that run one after the other on the same threads, with their stats.
class StepChain {
 public:
  StepChain(Engine& engine, std::size_t first_step, std::size_t num_steps);
  /// Replaces the item's rows by what the steps make of them, or makes it an error. Called without the lock.
  void run(Item& item);
  /// Adds what was done to the engine's stats. Called with the lock.
  void flush();

 private:
  struct Link {
    const Step* step;
    std::size_t stat;
    std::unique_ptr<StepRunner> runner;
    StageStats done;
  };
  Engine& engine_;
  std::vector<Link> links_;
};

/// @param first_step, num_steps what runs on the stage's own threads.
std::unique_ptr<Feed> make_read_stage(Engine& engine, std::size_t num_steps);
std::unique_ptr<Feed> make_call_stage(Engine& engine, Feed& in, std::size_t first_step, std::size_t num_steps, int concurrency);
std::unique_ptr<Feed> make_async_stage(Engine& engine, Feed& in, std::size_t step);
std::unique_ptr<Feed> make_window_stage(Engine& engine, Feed& in, std::size_t step);

}  // namespace troupe::detail

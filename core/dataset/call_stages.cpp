#include <arrow/record_batch.h>

#include "engine.hpp"

namespace troupe::detail {

using Clock = std::chrono::steady_clock;

StepChain::StepChain(Engine& engine, std::size_t first_step, std::size_t num_steps) : engine_(engine) {
  for (std::size_t i = first_step; i < first_step + num_steps; ++i) links_.push_back({&engine.plan->steps[i], i + 1, nullptr, {}});
}

void StepChain::run(Item& item) {
  const StepContext context{item.path.get(), item.first.row, item.source_rows, &engine_.on_bad_row};
  try {
    for (auto& link : links_) {
      const auto began = Clock::now();
      if (!link.runner) link.runner = make_runner(*link.step);
      link.done.rows_in += num_rows(item.batches);
      item.batches = run_step(*link.step, *link.runner, item.batches, context);
      ++link.done.blocks;
      link.done.rows_out += num_rows(item.batches);
      link.done.bytes_out += num_bytes(item.batches);
      link.done.busy += Clock::now() - began;
    }
  } catch (...) {
    item.kind = Item::Kind::Error;
    item.error = std::current_exception();
    item.batches.clear();
  }
}

void StepChain::flush() {
  for (auto& link : links_) {
    StageStats& total = engine_.stats[link.stat];
    total.blocks += link.done.blocks;
    total.rows_in += link.done.rows_in;
    total.rows_out += link.done.rows_out;
    total.bytes_out += link.done.bytes_out;
    total.busy += link.done.busy;
    link.done = {};
  }
}

namespace {

/// What the item holds of the budget, after its rows were changed. Nobody waits for that: what is read must be able to go on.
void recharge(Engine& engine, Item& item, std::int64_t bytes) {
  const std::int64_t charge = std::max<std::int64_t>(bytes, 1024);
  engine.budget.add(charge - item.charge);
  if (charge < item.charge) engine.credit.notify_all();
  item.charge = charge;
}

class CallStage : public OrderedFeed {
 public:
  CallStage(Engine& engine, Feed& in, std::size_t first_step, std::size_t num_steps, int concurrency)
      : OrderedFeed(in), engine_(engine), first_step_(first_step), num_steps_(num_steps) {
    name_ = engine.plan->steps[first_step].name();
    for (int i = 0; i < concurrency; ++i) engine.spawn(name_, [this] { work(); });
  }

 private:
  void work() {
    StepChain chain{engine_, first_step_, num_steps_};
    std::unique_lock lock{engine_.mutex};
    for (;;) {
      const auto began = Clock::now();
      in_.changed.wait(lock, [&] { return engine_.stopped() || in_.ready() || in_.ended(); });
      StageStats& stats = engine_.stats[first_step_ + 1];
      stats.waited_in += Clock::now() - began;
      if (engine_.stopped() || !in_.ready()) break;
      const auto slot = take_slot();
      stats.queued_blocks = in_.queued();
      if (slot->item.kind == Item::Kind::Rows) {
        lock.unlock();
        chain.run(slot->item);
        const std::int64_t bytes = num_bytes(slot->item.batches);
        lock.lock();
        recharge(engine_, slot->item, bytes);
        chain.flush();
        engine_.failed = engine_.failed || slot->item.kind == Item::Kind::Error;
      }
      complete(*slot);
    }
    closed_ = true;
    changed.notify_all();
  }

  Engine& engine_;
  std::size_t first_step_;
  std::size_t num_steps_;
};

class AsyncStage : public OrderedFeed {
 public:
  AsyncStage(Engine& engine, Feed& in, std::size_t step) : OrderedFeed(in), engine_(engine), step_(engine.plan->steps[step]), stat_(step + 1) {
    name_ = step_.name();
    engine.spawn(name_, [this] { work(); });
  }

  void wake() override {
    changed.notify_all();
    idle_.notify_all();
  }

 private:
  struct Reply : BatchReply::Target {
    Reply(AsyncStage& s, std::shared_ptr<Slot> into) : engine(s.engine_.shared_from_this()), stage(s), slot(std::move(into)) {}
    void deliver(Batch rows, std::exception_ptr error) override { stage.delivered(*slot, std::move(rows), error); }
    std::shared_ptr<Engine> engine;  // keeps the stage, however late the answer
    AsyncStage& stage;
    std::shared_ptr<Slot> slot;
  };

  void work() {
    std::unique_lock lock{engine_.mutex};
    for (;;) {
      const auto began = Clock::now();
      in_.changed.wait(lock, [&] { return engine_.stopped() || in_.ready() || in_.ended(); });
      StageStats& stats = engine_.stats[stat_];
      stats.waited_in += Clock::now() - began;
      if (engine_.stopped() || !in_.ready()) break;
      Item whole = in_.pop();
      stats.queued_blocks = in_.queued();
      if (whole.kind != Item::Kind::Rows || whole.batches.empty()) {
        slots_.push_back(std::make_shared<Slot>(Slot{std::move(whole), true, Clock::now()}));
        complete(*slots_.back());
        continue;
      }
      if (!send_parts(lock, std::move(whole))) break;
    }
    // Answers may come from threads that are not ours: wait for them, so that nobody outlives the stream.
    idle_.wait(lock, [&] { return in_flight_ == 0; });
    closed_ = true;
    changed.notify_all();
  }

  /// Each batch of the item is a call, and an item of its own.
  bool send_parts(std::unique_lock<std::mutex>& lock, Item whole) {
    Batches parts;
    const std::int64_t size = step_.options.batch_size;
    for (const auto& batch : whole.batches) {
      if (size <= 0 || batch->num_rows() <= size)
        parts.push_back(batch);
      else
        for (std::int64_t first = 0; first < batch->num_rows(); first += size) parts.push_back(batch->Slice(first, size));
    }
    const std::int64_t charge = whole.charge;
    const bool ends_group = whole.ends_group;
    whole.batches.clear();
    for (std::size_t i = 0; i < parts.size(); ++i) {
      idle_.wait(lock, [&] { return engine_.stopped() || in_flight_ < step_.options.concurrency; });
      if (engine_.stopped()) return false;
      auto slot = std::make_shared<Slot>();
      slot->item = whole;
      slot->item.batches = {parts[i]};
      slot->item.charge = i == 0 ? charge - charge / static_cast<std::int64_t>(parts.size()) * static_cast<std::int64_t>(parts.size() - 1)
                                 : charge / static_cast<std::int64_t>(parts.size());
      slot->item.ends_group = ends_group && i + 1 == parts.size();
      slot->since = Clock::now();
      slots_.push_back(slot);
      ++in_flight_;
      lock.unlock();
      call(parts[i], slot);
      lock.lock();
    }
    return true;
  }

  void call(const Batch& rows, const std::shared_ptr<Slot>& slot) {
    const BatchReply reply{std::make_unique<Reply>(*this, slot)};
    try {
      step_.async(rows, reply);
    } catch (...) {
      reply.fail(std::current_exception());
    }
  }

  void delivered(Slot& slot, Batch rows, std::exception_ptr error) {
    const std::lock_guard lock{engine_.mutex};
    Item& item = slot.item;
    StageStats& stats = engine_.stats[stat_];
    const std::int64_t rows_in = num_rows(item.batches);
    error = error_of(item, rows, error);
    if (error) {
      item.kind = Item::Kind::Error;
      item.error = error;
      item.batches.clear();
      engine_.failed = true;
    } else {
      item.batches = {std::move(rows)};
    }
    recharge(engine_, item, num_bytes(item.batches));
    ++stats.blocks;
    stats.rows_in += rows_in;
    stats.rows_out += num_rows(item.batches);
    stats.bytes_out += num_bytes(item.batches);
    stats.busy += Clock::now() - slot.since;
    --in_flight_;
    complete(slot);
    idle_.notify_all();
  }

  /// The same checks and words as for other steps.
  std::exception_ptr error_of(const Item& item, const Batch& rows, std::exception_ptr error) const {
    struct Given : StepRunner {
      Given(Batch b, std::exception_ptr e) : batch(std::move(b)), error(e) {}
      Batch run(const Batch&, const StepContext&) override {
        if (error) std::rethrow_exception(error);
        return batch;
      }
      Batch batch;
      std::exception_ptr error;
    };
    Given given{rows, error};
    try {
      Step step{step_};
      step.options.batch_size = 0;
      static_cast<void>(run_step(step, given, item.batches, {item.path.get(), item.first.row, item.source_rows, nullptr}));
      return nullptr;
    } catch (...) {
      return std::current_exception();
    }
  }

  Engine& engine_;
  const Step& step_;
  std::size_t stat_;
  int in_flight_ = 0;
  std::condition_variable idle_;
};

}  // namespace

std::unique_ptr<Feed> make_call_stage(Engine& engine, Feed& in, std::size_t first_step, std::size_t num_steps, int concurrency) {
  return std::make_unique<CallStage>(engine, in, first_step, num_steps, concurrency);
}
std::unique_ptr<Feed> make_async_stage(Engine& engine, Feed& in, std::size_t step) { return std::make_unique<AsyncStage>(engine, in, step); }

}  // namespace troupe::detail

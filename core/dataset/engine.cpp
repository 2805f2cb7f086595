#include "engine.hpp"

#include <cstdio>
#include <pthread.h>
#include <system_error>

#include "epoch_plan.hpp"

namespace troupe::detail {

using Clock = std::chrono::steady_clock;

Item OrderedFeed::pop() {
  Item item = std::move(slots_.front()->item);
  slots_.pop_front();
  return item;
}

std::shared_ptr<OrderedFeed::Slot> OrderedFeed::take_slot() {
  auto slot = std::make_shared<Slot>();
  slot->item = in_.pop();
  slot->since = Clock::now();
  slots_.push_back(slot);
  return slot;
}

void OrderedFeed::complete(Slot& slot) {
  slot.done = true;
  if (!slots_.empty() && slots_.front()->done) changed.notify_all();
}

std::optional<std::string> OrderedFeed::busy_with(Clock::time_point now) const {
  if (slots_.empty() || slots_.front()->done) return std::nullopt;
  const Slot& slot = *slots_.front();
  return "stage " + name_ + " has worked on " + (slot.item.path ? *slot.item.path : std::string{"rows"}) + ", row " +
         std::to_string(slot.item.first.row) + " on, for " +
         std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(now - slot.since).count()) + " ms";
}

Engine::Engine(std::shared_ptr<const Plan> plan_in, StreamOptions options_in, std::optional<Resumed> resumed_in)
    : plan(std::move(plan_in)), options(std::move(options_in)), resumed(std::move(resumed_in)) {
  check_options(*plan, options);
  budget.limit = std::max<std::int64_t>(options.execution.memory_budget_bytes, 1);
  on_bad_row = [this](const BadRow& row) { bad_row(row); };
  stats.push_back({});
  stats.back().name = "read";
  stats.back().concurrency = options.execution.num_readers;
  for (const auto& step : plan->steps) {
    stats.push_back({});
    stats.back().name = step.name();
    stats.back().concurrency = step.options.concurrency;
  }
}

Engine::~Engine() = default;

void Engine::build_stages() {
  const auto& steps = plan->steps;
  // Steps without threads of their own run with what is before them; nothing runs on the threads that an asynchronous function answers from.
  const auto followers = [&](std::size_t from) {
    std::size_t n = 0;
    while (from + n < steps.size() && steps[from + n].options.concurrency == 0 && !steps[from + n].is_window()) ++n;
    return n;
  };
  std::size_t at = followers(0);
  feeds_.push_back(make_read_stage(*this, at));
  while (at < steps.size()) {
    Feed& in = *feeds_.back();
    const Step& step = steps[at];
    if (step.is_window()) {
      feeds_.push_back(make_window_stage(*this, in, at++));
    } else if (step.async) {
      feeds_.push_back(make_async_stage(*this, in, at++));
    } else {
      const std::size_t num_steps = std::max<std::size_t>(1, (step.options.concurrency > 0 ? 1 : 0) + followers(at + (step.options.concurrency > 0 ? 1 : 0)));
      feeds_.push_back(make_call_stage(*this, in, at, num_steps, std::max(step.options.concurrency, 1)));
      at += num_steps;
    }
  }
}

void Engine::spawn(std::string name, std::function<void()> work) {
  // Threads start when all stages stand.
  starts_.push_back([this, name = std::move(name), work = std::move(work)] {
    threads_.emplace_back([self = shared_from_this(), name, work] {
      pthread_setname_np(pthread_self(), ("data " + name).substr(0, 15).c_str());
      work();
      const std::lock_guard lock{self->mutex};
      --self->running_;
      self->thread_ended_.notify_all();
    });
    ++running_;
  });
}

void Engine::start() {
  build_stages();
  try {
    const std::lock_guard lock{mutex};  // no thread works before all are there
    for (const auto& one : starts_) one();
    starts_.clear();
  } catch (const std::system_error& error) {
    close();
    throw Failure{Errc::StartFailed, std::string{"a thread for a data set cannot be started: "} + error.what() + "; fewer readers or less concurrency may help"};
  }
}

void Engine::warn(const std::string& text) const {
  if (options.execution.on_warning)
    options.execution.on_warning(text);
  else
    std::fprintf(stderr, "troupe: data set: %s\n", text.c_str());
}

void Engine::bad_row(const BadRow& row) {
  const auto& bad = options.execution.bad_rows;
  const std::string text = row.where + ": " + row.why;
  if (bad.policy == BadRows::Policy::Fail) throw Failure{Errc::DataMalformed, text};
  std::int64_t count = 0;
  {
    const std::lock_guard lock{mutex};
    count = skipped_rows_ += row.num_rows;
  }
  if (bad.limit >= 0 && count > bad.limit)
    throw Failure{Errc::DataMalformed, "more than " + std::to_string(bad.limit) + " bad rows; the last: " + text};
  if (count - row.num_rows < 10) warn("bad row skipped: " + text + (count >= 10 ? " (later ones are counted only)" : ""));
}

std::optional<std::string> Engine::stalled_stage() {
  const auto now = Clock::now();
  for (auto feed = feeds_.rbegin(); feed != feeds_.rend(); ++feed)
    if (auto text = (*feed)->busy_with(now)) return text;
  return std::nullopt;
}

std::optional<Item> Engine::next() {
  std::unique_lock lock{mutex};
  if (error_) std::rethrow_exception(error_);
  Feed& last = *feeds_.back();
  const auto began = Clock::now();
  const auto& execution = options.execution;
  auto warn_after = execution.stall_warning;
  const auto come = [&] { return stopped() || last.ready() || last.ended(); };
  while (!come()) {
    const auto waited = Clock::now() - began;
    if (execution.stall_deadline.count() > 0 && waited >= execution.stall_deadline) {
      stalled_ = true;
      error_ = std::make_exception_ptr(Failure{Errc::DeadlinePassed, "no data for " + std::to_string(execution.stall_deadline.count()) + " ms: " +
                                                                         stalled_stage().value_or("no stage is busy")});
      std::rethrow_exception(error_);
    }
    if (warn_after.count() > 0 && waited >= warn_after) {
      const std::string text = "no data for " + std::to_string(warn_after.count()) + " ms: " + stalled_stage().value_or("no stage is busy");
      lock.unlock();
      warn(text);
      lock.lock();
      warn_after *= 2;
      continue;
    }
    auto until = began + std::chrono::hours{24 * 365};
    if (execution.stall_deadline.count() > 0) until = std::min(until, began + execution.stall_deadline);
    if (warn_after.count() > 0) until = std::min(until, began + warn_after);
    last.changed.wait_until(lock, until, come);
  }
  waited_ += Clock::now() - began;
  if (stopped()) throw Failure{Errc::Cancelled, "the stream was stopped"};
  if (!last.ready()) return std::nullopt;
  Item item = last.pop();
  budget.held -= item.charge;
  credit.notify_all();
  if (item.kind == Item::Kind::Error) {
    error_ = item.error;
    std::rethrow_exception(error_);
  }
  return item;
}

void Engine::stop() noexcept {
  const std::lock_guard lock{mutex};
  stopping.request_stop();
  credit.notify_all();
  for (const auto& feed : feeds_) feed->wake();
}

void Engine::close() noexcept {
  stop();
  {
    std::unique_lock lock{mutex};
    const auto ended = [&] { return running_ == 0; };
    if (stalled_)
      thread_ended_.wait_for(lock, std::chrono::seconds{2}, ended);
    else
      thread_ended_.wait(lock, ended);
    stalled_ = running_ > 0;
  }
  for (auto& thread : threads_) {
    if (stalled_)
      thread.detach();
    else
      thread.join();
  }
  threads_.clear();
}

void Engine::fill(StreamStats& out) {
  const std::lock_guard lock{mutex};
  out.stages = stats;
  out.held_bytes = budget.held + budget.beside;
  out.peak_bytes = budget.peak;
  out.skipped_rows = skipped_rows_;
  out.consumer_waited = waited_;
}

}  // namespace troupe::detail

#include <troupe/pending_save.hpp>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace troupe {

struct PendingSave::State {
  mutable std::mutex mutex;
  mutable std::condition_variable ended;
  bool finishing = false;  // callbacks run
  std::optional<Outcome> outcome;
  std::vector<std::function<void(const Outcome&)>> callbacks;
};

namespace {

void call(const std::function<void(const Outcome&)>& callback, const Outcome& outcome) noexcept {
  try {
    callback(outcome);
  } catch (...) {  // the writer has nobody to tell, and the other callbacks still wait
  }
}

}  // namespace

PendingSave::PendingSave() : state_(std::make_unique<State>()) {}
PendingSave::~PendingSave() = default;

void PendingSave::finish(Outcome outcome) {
  std::unique_lock lock{state_->mutex};
  if (state_->outcome || std::exchange(state_->finishing, true)) return;
  while (!state_->callbacks.empty()) {
    const auto callbacks = std::exchange(state_->callbacks, {});
    lock.unlock();
    for (const auto& callback : callbacks) call(callback, outcome);
    lock.lock();
  }
  state_->outcome = std::move(outcome);
  state_->ended.notify_all();  // under the lock: a waiter, who may destroy this object, cannot return before it is released
}

bool PendingSave::done() const {
  const std::scoped_lock lock{state_->mutex};
  return state_->outcome.has_value();
}

Outcome PendingSave::wait(std::chrono::steady_clock::time_point deadline) const {
  std::unique_lock lock{state_->mutex};
  if (!state_->ended.wait_until(lock, deadline, [this] { return state_->outcome.has_value(); })) {
    return {Errc::DeadlinePassed, "a save under way was not finished in time; it may still be"};
  }
  return *state_->outcome;
}

Outcome PendingSave::wait() const {
  std::unique_lock lock{state_->mutex};
  state_->ended.wait(lock, [this] { return state_->outcome.has_value(); });
  return *state_->outcome;
}

void PendingSave::when_done(std::function<void(const Outcome&)> callback) {
  Outcome outcome;
  {
    const std::scoped_lock lock{state_->mutex};
    if (!state_->outcome) {
      state_->callbacks.push_back(std::move(callback));
      return;
    }
    outcome = *state_->outcome;
  }
  call(callback, outcome);
}

}  // namespace troupe

#pragma once

#include <troupe/errors.hpp>

#include <chrono>
#include <functional>
#include <memory>

namespace troupe {

/// A save under way: the writer finishes it once, others wait for it or ask to be called.
///
/// Threads: any, at once; it may be destroyed as soon as `finish` or `wait` has returned.
class PendingSave {
 public:
  PendingSave();
  ~PendingSave();
  PendingSave(const PendingSave&) = delete;
  PendingSave& operator=(const PendingSave&) = delete;

  /// Ends it: success (everything is durable) or why not. Only the first call counts. Runs the callbacks on this thread,
  /// in the order they came, before anyone who waits returns: a callback must not wait itself. What they throw is lost.
  void finish(Outcome outcome);
  [[nodiscard]] bool done() const;
  /// How it ended; Outcome{DeadlinePassed} when it has not by `deadline`.
  [[nodiscard]] Outcome wait(std::chrono::steady_clock::time_point deadline) const;
  /// How it ended, however long that takes.
  [[nodiscard]] Outcome wait() const;
  /// Calls `callback` once: on the thread that finishes, or at once on this one when that has happened.
  void when_done(std::function<void(const Outcome&)> callback);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace troupe

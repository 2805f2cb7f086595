#pragma once

#include "black_box_memory.hpp"

#include <troupe/caf_types.hpp>

#include <atomic>
#include <caf/actor.hpp>
#include <caf/send.hpp>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>

namespace troupe {

/// What a rank's control actor and its worker thread share: the way to the group, the barrier the worker waits in, the
/// stop count. Outlives both, so that a worker that cannot be ended finds nothing dangling.
///
/// Threads: functions marked "worker" from the worker only, the others from the actor; both at any time.
class RankChannel {
 public:
  /// @param box where the worker's progress is written; nullptr: nowhere
  RankChannel(caf::actor control, caf::actor group, std::shared_ptr<detail::BlackBoxMemory> box = nullptr)
      : control_(std::move(control)), group_(std::move(group)), box_memory_(std::move(box)), box_(box_memory_ ? &box_memory_->box() : nullptr) {}

  /// Any thread. nullptr: there is none.
  [[nodiscard]] BlackBox* box() const noexcept { return box_; }
  /// Worker: it gets on.
  void advance() const noexcept {
    if (box_) box_->advance();
  }

  /// Worker: sends to the group. Throws Failure{Aborted} once the rank was aborted.
  template <class Message>
  void send(Message message) {
    advance();
    const std::lock_guard lock{mutex_};
    throw_if_aborted();
    caf::anon_send(group_, std::move(message));
  }
  /// Worker: sends unless that would have to wait or fail.
  template <class Message>
  void try_send(Message message) {
    advance();
    const std::unique_lock lock{mutex_, std::try_to_lock};
    if (lock && group_ && !aborted_) caf::anon_send(group_, std::move(message));
  }
  /// Any thread: sends to the group; dropped when that is gone or the rank was aborted.
  template <class Message>
  void post(Message message) {
    const std::lock_guard lock{mutex_};
    if (group_ && !aborted_) caf::anon_send(group_, std::move(message));
  }
  /// Worker: sends to the control actor; dropped when that is gone.
  template <class Message>
  void tell_control(Message message) {
    const std::lock_guard lock{mutex_};
    if (control_) caf::anon_send(control_, std::move(message));
  }
  /// Worker: sends `reached` and waits for its BarrierPassed. Throws what the group answers, or Failure{Aborted}.
  std::string pass_barrier(BarrierReached reached);
  /// Worker: the answer to `sequence`, if it has come, without waiting; throws as `pass_barrier`, which is this in a loop.
  std::optional<std::string> take_passed(std::uint64_t sequence);
  /// Worker: counts one should_stop() call; a held one waits for `stop_after`.
  bool next_stop_call() noexcept {
    advance();
    const auto before = stop_word_.fetch_add(1);
    if (box_) box_->stop_calls.store((before & ~held) + 1, std::memory_order_relaxed);
    return (before & held) != 0 && held_stop_call((before & ~held) + 1);
  }

  /// Worker: whether the next should_stop() call would wait.
  [[nodiscard]] bool stop_call_waits() const;

  void barrier_passed(BarrierPassed passed);
  /// How many calls have passed. Calls after that wait.
  [[nodiscard]] std::uint64_t hold_for_stop() noexcept { return stop_word_.fetch_or(held) & ~held; }
  void stop_after(std::uint64_t calls);
  /// should_stop() calls so far.
  [[nodiscard]] std::uint64_t stop_calls() const noexcept { return stop_word_.load() & ~held; }
  /// Every wait and every later send of the worker fails with Failure{Aborted, reason}. The first reason stays.
  void abort(const std::string& reason);
  [[nodiscard]] bool aborted() const;
  /// Lets go of both actors; the worker's messages are dropped from here on.
  void close();

 private:
  // The top bit of the word says that calls are held; the rest counts them. One atomic word for both, so that a call
  // is either counted in the answer to CountForStop or held, never neither.
  static constexpr std::uint64_t held = std::uint64_t{1} << 63;

  bool held_stop_call(std::uint64_t call) noexcept;
  void throw_if_aborted() const;

  std::atomic<std::uint64_t> stop_word_{0};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  caf::actor control_;
  caf::actor group_;
  std::optional<std::string> aborted_;
  std::optional<std::uint64_t> stop_after_;
  std::optional<BarrierPassed> passed_;
  const std::shared_ptr<detail::BlackBoxMemory> box_memory_;
  BlackBox* const box_;
};

}  // namespace troupe

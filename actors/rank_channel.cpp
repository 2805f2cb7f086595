#include "rank_channel.hpp"

namespace troupe {

void RankChannel::throw_if_aborted() const {
  if (aborted_) throw Failure{Errc::Aborted, *aborted_};
}

std::string RankChannel::pass_barrier(BarrierReached reached) {
  const auto sequence = reached.sequence;
  if (box_) box_->note(EventKind::Barrier, sequence, {}, {}, std::chrono::steady_clock::now());
  const WaitMark mark{WaitingIn::Barrier};
  std::unique_lock lock{mutex_};
  throw_if_aborted();
  passed_.reset();
  caf::anon_send(group_, std::move(reached));
  changed_.wait(lock, [&] { return aborted_ || (passed_ && passed_->sequence == sequence); });
  throw_if_aborted();
  auto passed = *std::exchange(passed_, std::nullopt);
  if (passed.error != Errc::Ok) throw Failure{passed.error, passed.text};
  return std::move(passed.bytes);
}

void RankChannel::barrier_passed(BarrierPassed passed) {
  const std::lock_guard lock{mutex_};
  passed_ = std::move(passed);
  changed_.notify_all();
}

bool RankChannel::held_stop_call(std::uint64_t call) noexcept {
  const WaitMark mark{WaitingIn::StopStep};
  std::unique_lock lock{mutex_};
  changed_.wait(lock, [&] { return aborted_ || stop_after_; });
  return aborted_ || call > *stop_after_;
}

void RankChannel::stop_after(std::uint64_t calls) {
  const std::lock_guard lock{mutex_};
  stop_after_ = calls;
  stop_word_.fetch_or(held);
  changed_.notify_all();
}

void RankChannel::abort(const std::string& reason) {
  const std::lock_guard lock{mutex_};
  if (!aborted_) aborted_ = reason;
  stop_word_.fetch_or(held);
  changed_.notify_all();
}

bool RankChannel::aborted() const {
  const std::lock_guard lock{mutex_};
  return aborted_.has_value();
}

void RankChannel::close() {
  caf::actor control, group;  // released after the lock
  const std::lock_guard lock{mutex_};
  std::swap(control, control_);
  std::swap(group, group_);
  if (!aborted_) aborted_ = "the rank's run is over";
  stop_word_.fetch_or(held);
  changed_.notify_all();
}

}  // namespace troupe

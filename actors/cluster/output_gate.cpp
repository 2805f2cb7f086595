#include "output_gate.hpp"

#include <algorithm>
#include <chrono>

namespace troupe::detail {

bool OutputGate::pass(std::size_t bytes, const std::atomic<bool>& stopping) {
  constexpr std::chrono::milliseconds look{50};  // `stopping` is no news of ours
  std::unique_lock lock{mutex_};
  while (!is_closed_ && !stopping && ahead_ + bytes > ahead_bytes) changed_.wait_for(lock, look);
  if (is_closed_ || stopping) return false;
  ahead_ += bytes;
  return true;
}

void OutputGate::taken(std::size_t bytes) {
  const std::lock_guard lock{mutex_};
  ahead_ -= std::min(bytes, ahead_);
  changed_.notify_all();
}

void OutputGate::close() {
  const std::lock_guard lock{mutex_};
  is_closed_ = true;
  changed_.notify_all();
}

}  // namespace troupe::detail

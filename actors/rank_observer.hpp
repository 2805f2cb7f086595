#pragma once

#include <troupe/rank_watch.hpp>
#include <troupe/result.hpp>

#include <cstdint>
#include <optional>
#include <string>

namespace troupe::detail {

/// What the group's process sees of a rank's process without asking its train function anything. Threads: any.
class RankObserver {
 public:
  virtual ~RankObserver() = default;
  /// What its training thread has done in `attempt`; nothing when it is in another or was never seen.
  [[nodiscard]] virtual std::optional<RankBeat> beat(std::uint64_t attempt) = 0;
  /// Makes every thread write its stack. False: none can, as before its train function runs.
  [[nodiscard]] virtual bool ask_stacks() = 0;
  [[nodiscard]] virtual bool have_stacks() const noexcept = 0;
  /// Stacks as far as they have come, the kernel's view of the threads that did not write theirs, and the last events.
  [[nodiscard]] virtual std::string stacks_told() = 0;
  /// Fills in what is known of the end: process, step, crash record, events; calls a SIGKILL by the kernel for memory OutOfMemory.
  /// @param was_ours this program killed it
  virtual void complete(RunError& error, std::uint64_t attempt, bool was_ours) const = 0;
};

}  // namespace troupe::detail

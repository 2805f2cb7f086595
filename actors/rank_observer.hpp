#pragma once

#include "black_box_memory.hpp"
#include "memory_kills.hpp"

#include <troupe/rank_watch.hpp>
#include <troupe/result.hpp>

#include <sys/types.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace troupe::detail {

/// What the group's process sees of a rank's process without asking it anything: its black box, and what the kernel tells.
///
/// Threads: any. Errors: without memory for a box there is less to see.
class RankObserver {
 public:
  RankObserver();

  /// For the child; -1 without a box.
  [[nodiscard]] int fd() const noexcept { return memory_ ? memory_->fd() : -1; }
  void began(pid_t pid);
  /// Before its status is taken: from then on its number may be another's.
  void ending();

  /// What its training thread has done in `attempt`; nothing when it is in another or was never seen.
  [[nodiscard]] std::optional<RankBeat> beat(std::uint64_t attempt);

  /// Makes every thread write its stack. False: none can, as before its train function runs.
  [[nodiscard]] bool ask_stacks();
  [[nodiscard]] bool have_stacks() const noexcept;
  /// Stacks as far as they have come, the kernel's view of the threads that did not write theirs, and the last events.
  [[nodiscard]] std::string stacks_told();

  /// Fills in what is known of the end: process, step, crash record, events; calls a SIGKILL by the kernel for memory OutOfMemory.
  /// @param was_ours this program killed it
  void complete(RunError& error, std::uint64_t attempt, bool was_ours) const;

 private:
  [[nodiscard]] bool is_of(std::uint64_t attempt) const noexcept;

  std::shared_ptr<BlackBoxMemory> memory_;
  std::optional<MemoryKills> kills_before_;
  mutable std::mutex mutex_;
  pid_t pid_ = 0;         // 0: not started, or gone
  pid_t known_pid_ = 0;   // also afterwards
  std::uint64_t last_progress_ = 0;
  std::uint32_t num_asked_ = 0;
};

}  // namespace troupe::detail

#pragma once

#include "black_box_memory.hpp"
#include "memory_kills.hpp"
#include "rank_observer.hpp"

#include <sys/types.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace troupe::detail {

/// Of a process of this host: its black box, and what the kernel tells.
///
/// Threads: any. Errors: without memory for a box there is less to see.
class LocalRankObserver final : public RankObserver {
 public:
  LocalRankObserver();

  /// For the child; -1 without a box.
  [[nodiscard]] int fd() const noexcept { return memory_ ? memory_->fd() : -1; }
  void began(pid_t pid);
  /// Before its status is taken: from then on its number may be another's.
  void ending();

  [[nodiscard]] std::optional<RankBeat> beat(std::uint64_t attempt) override;
  [[nodiscard]] bool ask_stacks() override;
  [[nodiscard]] bool have_stacks() const noexcept override;
  [[nodiscard]] std::string stacks_told() override;
  void complete(RunError& error, std::uint64_t attempt, bool was_ours) const override;

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

#pragma once

#include <troupe/black_box.hpp>
#include <troupe/chaos.hpp>
#include <troupe/messages.hpp>

#include <cstdint>
#include <utility>

namespace troupe {

/// Carries out the faults that a plan has for one rank in one attempt. Threads: the rank's worker.
class RankChaos {
 public:
  /// Throws what `parse_chaos` throws. Storage faults of an attempt before end here.
  RankChaos(const RunRank& run, BlackBox* box);

  /// Breaks what is due when the rank has completed `step` steps: throws, or never returns, or returns.
  void strike(std::uint64_t step, Communicator& seat);
  /// True once after a `nan` fault.
  [[nodiscard]] bool take_bad_number() noexcept { return std::exchange(bad_number_, false); }

 private:
  void carry_out(const ChaosStrike& strike, std::uint64_t step, Communicator& seat);

  ChaosPlan plan_;
  int rank_, world_size_;
  Attempt attempt_;
  Placement placement_;
  BlackBox* box_;  // may be nullptr
  bool bad_number_ = false;
};

}  // namespace troupe

#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "simulation_placer.hpp"
#include "simulation_rank.hpp"
#include "simulation_storage.hpp"

namespace troupe::sim {

/// Bugs that a test plants by putting itself between actors, to see that they are found.
enum class Bug : std::uint8_t {
  None,
  LostAcknowledgement,  ///< the keeper acknowledges a checkpoint before it has committed it
  StaleAttempt,         ///< messages of an attempt that is over come again under the number of the current one
  DoubleCommit,         ///< the keeper gets an order to commit twice
};

/// Everything that a seed decides before the run begins.
struct Scenario {
  std::uint64_t seed = 0;
  bool calm = false;  ///< nothing goes wrong and nobody interferes
  ScalingConfig scaling;
  RunConfig run;
  Training training;
  RankFaults rank_faults;
  DiskFaults disk_faults;
  int write_error_percent = 0;  ///< of the parts of a checkpoint
  int late_percent = 0;
  std::optional<Duration> stop, second_stop, exit, crash;  ///< from a driver's beginning; of a second stop from the first
  std::vector<std::pair<Duration, int>> resizes;  ///< when, to how many ranks
  bool preempts = false;  ///< the stop is a preemption
  bool replays = false;   ///< old messages come again
  bool meddles = false;   ///< somebody tells actors to exit
  int max_crashes = 0;
};

[[nodiscard]] Scenario draw_scenario(std::uint64_t seed);
[[nodiscard]] std::string describe(const Scenario& scenario);

/// What came of a simulated run, over all its drivers.
struct Findings {
  std::optional<std::string> violation;
  std::deque<std::string> trace;  ///< of the last driver, when asked for
  std::uint64_t fingerprint = 0;
  std::uint64_t num_messages = 0;
  int num_drivers = 0, num_attempts = 0, num_growths = 0, num_reports = 0, num_checkpoints = 0, num_ok = 0, num_stopped = 0;
};

/// Runs one seed.
[[nodiscard]] Findings simulate(std::uint64_t seed, Bug bug = Bug::None, bool trace = false);

}  // namespace troupe::sim

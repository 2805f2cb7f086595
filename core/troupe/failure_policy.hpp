#pragma once

#include <troupe/result.hpp>
#include <troupe/run_options.hpp>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

// What follows from the end of a rank or of a group of ranks. Plain functions: no actor, no clock.

namespace troupe {

enum class NextStep : std::uint8_t { Finish, Retry, Fail };

/// A decision and why it was taken, in words for the log and for the user.
struct Verdict {
  NextStep step = NextStep::Finish;
  std::string reason;
};

/// The failed attempts of a run before the one that has just ended.
struct FailuresSoFar {
  int counted = 0;    ///< within FailureConfig::failure_window
  int fruitless = 0;  ///< the last ones in a row that got nowhere: no report, no step, no newer copy of the state
  int same = 0;       ///< with the code of the one that has just ended: some kinds are given up early (failure_rules.hpp)
};

/// What to do when every rank of an attempt has ended.
/// @param got_on whether the attempt got anywhere.
[[nodiscard]] Verdict after_group_ended(const std::optional<RunError>& error, bool stop_requested, bool got_on,
                                        const FailuresSoFar& before, const FailureConfig& config);

/// How much is started anew after a failure.
enum class RestartLevel : std::uint8_t {
  Rank,   ///< the ranks whose processes are lost; the others keep theirs
  Group,  ///< all of them: no process and no kept object is used again
  Run,    ///< nothing: the run ends, or, elastic, goes on with a rank less
};

/// What went before, within FailureConfig::failure_window.
struct RestartCounts {
  int of_rank = 0;   ///< failures of the same rank since all ranks were started anew
  int of_group = 0;  ///< times that all were
};

struct Escalation {
  RestartLevel level = RestartLevel::Rank;
  std::string reason;
};

/// Of a failure that is worth a retry: each level has its budget, and what is above it goes to the next.
/// @param rank that failed first; nothing: nobody in particular, which counts for no rank.
[[nodiscard]] Escalation restart_level(std::optional<int> rank, const RestartCounts& before, const FailureConfig& config);

/// Pause before the next attempt: none after one that got on, else 100 ms, doubled for every further fruitless one, 10 s at
/// most, and up to a quarter more or less, so that runs that failed together do not come back together.
/// @param fruitless in a row, the last one included. @param jitter from -1 to 1.
[[nodiscard]] std::chrono::milliseconds retry_delay(int fruitless, double jitter) noexcept;

/// How many ranks the next attempt of an elastic run has: as many as could be started, down to min_workers, when some could not; one less
/// when attempts in a row got nowhere. Other runs keep their number.
/// @param places ranks that could be started, as far as that is known.
[[nodiscard]] int next_world_size(const std::optional<RunError>& error, int world_size, std::optional<int> places, int fruitless, const ScalingConfig& scaling) noexcept;

/// A copy of the training state from which an attempt can go on.
struct StateCopy {
  std::filesystem::path path;
  int world_size = 0;         ///< of the attempt that made it; 0: not known
  std::uint64_t reports = 0;  ///< sent when it was made
  std::int64_t steps = 0;     ///< optimizer updates in it; 0: not known
};

/// The newest of the committed checkpoints, oldest first, and of the snapshot in memory.
[[nodiscard]] std::optional<StateCopy> newest_copy(const std::vector<CheckpointRecord>& checkpoints, const std::optional<StateCopy>& snapshot);

/// Whether an error with this code may vanish when the same thing is tried again.
[[nodiscard]] bool worth_retrying(Errc code) noexcept;

/// The process in which a rank failed so cannot be used again, and it is the program's own: no restart inside it helps.
[[nodiscard]] bool must_end_program(Errc code, Placement placement) noexcept;

/// Why a group failed: the first error that is not the echo of another (Aborted, or NetworkFailed beside others). When all are echoes and some ranks
/// have returned, those returned early, and the others waited for them: CollectiveMismatch, which says so.
/// @param errors   in order of arrival.
/// @param returned ranks whose train function returned.
[[nodiscard]] std::optional<RunError> first_cause(const std::vector<RunError>& errors, const std::set<int>& returned);

}  // namespace troupe

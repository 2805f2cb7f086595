#pragma once

#include <troupe/result.hpp>
#include <troupe/run_options.hpp>

#include <chrono>
#include <cstdint>
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

/// What to do when every rank of an attempt has ended.
/// @param failures attempts of this run that failed before this one.
/// @param same_failures how many of them with this error's code: some kinds are given up early (failure_rules.hpp).
[[nodiscard]] Verdict after_group_ended(const std::optional<RunError>& error, bool stop_requested,
                                        int failures, const FailureConfig& config, int same_failures = 0);

/// Pause before attempt number `failures` + 1: 100 ms, doubled for every failure, 10 s at most.
[[nodiscard]] std::chrono::milliseconds retry_delay(int failures) noexcept;

/// Whether an error with this code may vanish when the same thing is tried again.
[[nodiscard]] bool worth_retrying(Errc code) noexcept;

/// Why a group failed: the first error that is not the echo of another (Aborted). When all are echoes and some ranks
/// have returned, those returned early, and the others waited for them: CollectiveMismatch, which says so.
/// @param errors   in order of arrival.
/// @param returned ranks whose train function returned.
[[nodiscard]] std::optional<RunError> first_cause(const std::vector<RunError>& errors, const std::set<int>& returned);

}  // namespace troupe

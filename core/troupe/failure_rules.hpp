#pragma once

#include <troupe/errors.hpp>

#include <span>
#include <string_view>

namespace troupe {

/// Whether a failure of a kind is worth another attempt, and why, in words for the log, the post-mortem and docs/supervision.md.
struct FailureRule {
  Errc code = Errc::Ok;
  bool retry = false;
  int most = -1;            ///< attempts that fail this way after which it is given up, whatever `max_failures` allows; -1: no such limit
  std::string_view why;     ///< "memory may have been short for a moment"
  std::string_view advice;  ///< what a person can do
  bool keeps_process = true;  ///< the process in which it happened can be a rank again
};

/// The rule of a kind of failure; of a number that this program does not know, Internal's.
[[nodiscard]] const FailureRule& failure_rule(Errc code) noexcept;

/// All of them, in the order of their numbers.
[[nodiscard]] std::span<const FailureRule> failure_rules() noexcept;

}  // namespace troupe

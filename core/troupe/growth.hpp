#pragma once

#include <troupe/run_options.hpp>

#include <chrono>
#include <optional>
#include <string>

// When an elastic run that has lost ranks gets them back. Plain functions: no actor, no clock.

namespace troupe {

/// A try to have more ranks again.
struct GrowthTry {
  std::chrono::milliseconds after{0};  ///< from the loss of the ranks, or from the try before
  int places = 0;                      ///< that are looked for
  std::string reason;
};

/// The next try; nothing: the run has the ranks it wants, or does not grow by itself.
/// @param wanted ScalingConfig::num_workers, or what the last ResizeRun asked for.
/// @param failed_tries in a row: each doubles the time, up to 64 times grow_after.
[[nodiscard]] std::optional<GrowthTry> next_growth(int world_size, int wanted, int failed_tries, const ScalingConfig& scaling);

struct GrowthDecision {
  int world_size = 0;  ///< from the next step boundary on; as it is: nothing is changed
  std::string reason;
};

/// @param found places, from 0 on; @param why not more.
[[nodiscard]] GrowthDecision after_places_found(int world_size, int wanted, int found, const std::string& why);

/// What follows from the end of the first attempt with more ranks, when it failed: nothing when it got anywhere, as then it is a failure
/// like any other; else the number of before, and no restart is counted.
[[nodiscard]] std::optional<GrowthDecision> after_grown_attempt_failed(int grew_from, int world_size, bool got_on, const std::string& error);

}  // namespace troupe

#pragma once

#include <troupe/result.hpp>

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

// One short page on why an attempt ended badly: what a person needs to decide what to do. Plain values; the checkpoint keeper writes
// it into the run's directory.

namespace troupe {

struct PostMortem {
  std::string run_name;
  std::uint64_t attempt = 0;
  std::string node;              ///< host name
  int world_size = 0;
  std::string placement;         ///< "processes", "threads"
  double time_s = 0;             ///< since the run began
  std::string date;              ///< of the end, for people: "2026-03-01 12:00:00 UTC"
  RunError error;
  bool goes_on = false;          ///< another attempt follows
  std::string decision;          ///< why: "failure 1 of 3"
  std::optional<std::string> resumes_from;  ///< what the next attempt (or start) continues from: "checkpoint_000003", "the copy in memory after 120 updates"; nothing: the beginning
  std::optional<std::uint64_t> lost_steps;  ///< steps to be done again, when known
  std::vector<std::string> other_errors;    ///< of the same attempt: "rank 2: RankKilled: …"
  std::vector<std::string> warnings;        ///< of the run so far
};

/// "postmortem_3": the files' name without ending, of the attempt.
[[nodiscard]] std::string post_mortem_name(std::uint64_t attempt);

/// Markdown: what happened, where, what was lost, what to do; then last lines, backtrace and events as far as they are there. The
/// first part fits a screen.
[[nodiscard]] std::string to_markdown(const PostMortem& page);

/// {"run", "attempt", "node", "world_size", "placement", "time_s", "date", "error", "goes_on", "decision", "resumes_from"?,
///  "lost_steps"?, "other_errors", "warnings", "cause", "advice"}.
[[nodiscard]] nlohmann::ordered_json to_json(const PostMortem& page);

/// The one sentence: "rank 1 (process 4711 on node a) was killed by SIGKILL after step 12".
[[nodiscard]] std::string cause_of(const PostMortem& page);

}  // namespace troupe

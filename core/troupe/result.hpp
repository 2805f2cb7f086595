#pragma once

#include <troupe/checkpoint_ref.hpp>
#include <troupe/errors.hpp>
#include <troupe/metrics.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// Why a run ended badly.
struct RunError {
  Errc code = Errc::Ok;
  std::string message;
  std::optional<int> rank;       ///< the rank that failed first
  std::optional<int> signal;     ///< the signal that ended its process
  std::optional<int> exit_code;  ///< its process's exit code
  std::vector<std::string> last_lines;  ///< the last lines that the rank printed
  std::optional<std::uint64_t> step;    ///< steps that the rank had completed in its attempt
  std::optional<std::int64_t> pid;      ///< of its process
  std::string details{};                ///< lines for the post-mortem: backtrace, stacks, what every rank waited for
  std::string node{};                   ///< of a cluster, where the rank ran; empty: this host
};

/// One report as the Trainer received it.
struct ReportRecord {
  std::uint64_t attempt = 0;
  int rank = 0;
  std::uint64_t index = 0;  ///< counts the rank's reports from 0
  double time_s = 0;        ///< seconds since the run began
  Metrics metrics;
  std::optional<Checkpoint> checkpoint;  ///< where it is once committed, until retention removes it
};

/// A retained checkpoint and the metrics it was reported with.
struct CheckpointRecord {
  Checkpoint checkpoint;
  Metrics metrics;
  std::uint64_t index = 0;
};

/// What `TorchTrainer::fit()` returns, also after a failure.
struct Result {
  Metrics metrics;                               ///< rank 0's latest report (lowest reporting rank's if rank 0 never did)
  std::vector<ReportRecord> history;             ///< every report of every rank, in order of arrival
  std::vector<CheckpointRecord> checkpoints;     ///< retained ones, oldest first
  std::optional<CheckpointRecord> checkpoint;    ///< latest
  std::optional<CheckpointRecord> best_checkpoint;
  std::vector<CheckpointRecord> best_checkpoints;  ///< the retained ones, worst first: `back()` is best_checkpoint
  std::optional<RunError> error;
  std::filesystem::path path;                    ///< the run's directory
  std::string post_mortem;                       ///< file in it that explains the last attempt that failed: "postmortem_1.md"; empty: none did
  bool stopped_early = false;                    ///< ended by a stop request
  bool preempted = false;                        ///< the stop request was SIGTERM, a drain notice or a deadline: start it again to go on
  std::vector<std::string> warnings;             ///< what went wrong without ending the run: checkpoints that could not be written

  [[nodiscard]] bool ok() const noexcept { return !error; }
  /// 0 fine, 1 failed, 130 stopped by the user, 75 (EX_TEMPFAIL: try again later) preempted.
  [[nodiscard]] int exit_code() const noexcept { return error ? 1 : preempted ? 75 : stopped_early ? 130 : 0; }

  /// The retained checkpoint with the highest ("max") or lowest ("min") value of `metric`, the newest among equals; nothing
  /// when none has that metric. Throws Failure{InvalidArgument} on another mode.
  [[nodiscard]] std::optional<CheckpointRecord> get_best_checkpoint(const std::string& metric, const std::string& mode = "max") const;
  /// Reads a finished or broken run back from its directory (result.json and reports.jsonl).
  [[nodiscard]] static Result from_path(const std::filesystem::path& path);
};

}  // namespace troupe

#pragma once

#include <troupe/result.hpp>

#include <filesystem>
#include <nlohmann/json_fwd.hpp>

// How the records of a run look in its files. Checkpoints are written as names relative to the run's directory, so that
// a run may be moved. Readers throw Failure{FileCorrupt} naming what is wrong.

namespace troupe {

/// {"attempt", "rank", "index", "time_s", "metrics", "checkpoint"?}: one line of reports.jsonl.
[[nodiscard]] nlohmann::ordered_json to_json(const ReportRecord& record);
[[nodiscard]] ReportRecord report_from_json(const nlohmann::ordered_json& json, const std::filesystem::path& run);

/// {"directory", "index", "metrics"}.
[[nodiscard]] nlohmann::ordered_json to_json(const CheckpointRecord& record);
[[nodiscard]] CheckpointRecord checkpoint_from_json(const nlohmann::ordered_json& json, const std::filesystem::path& run);

/// {"code", "name", "message", "rank"?, "signal"?, "exit_code"?, "step"?, "pid"?, "last_lines", "details"?}.
[[nodiscard]] nlohmann::ordered_json to_json(const RunError& error);
[[nodiscard]] RunError error_from_json(const nlohmann::ordered_json& json);

/// result.json: {"metrics", "best_checkpoint", "checkpoint", "checkpoints", "best_checkpoints", "warnings", "error", "stopped_early", "preempted", "path", "post_mortem"?, "history"}.
[[nodiscard]] nlohmann::ordered_json to_json(const Result& result);
/// @param run the run's directory, which the file's own "path" may have left.
[[nodiscard]] Result result_from_json(const nlohmann::ordered_json& json, const std::filesystem::path& run);

/// What Result::metrics is: rank 0's latest report; the lowest reporting rank's when rank 0 never did.
[[nodiscard]] Metrics latest_metrics(const std::vector<ReportRecord>& history);

}  // namespace troupe

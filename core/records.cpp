#include <troupe/records.hpp>

#include <nlohmann/json.hpp>

namespace troupe {

using Json = nlohmann::ordered_json;

namespace {

// A missing key or a wrong type in a file of ours is a damaged file, whatever the JSON library calls it.
template <class F>
auto read(const char* what, F&& body) {
  try {
    return body();
  } catch (const nlohmann::json::exception& error) {
    throw Failure{Errc::FileCorrupt, std::string("no valid ") + what + ": " + error.what()};
  }
}

template <class T>
void set_optional(Json& json, const char* key, const std::optional<T>& value) {
  if (value) json[key] = *value;
}

template <class T>
std::optional<T> get_optional(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return std::nullopt;
  return found->get<T>();
}

Json json_or_null(const std::optional<CheckpointRecord>& record, const std::filesystem::path& run) {
  if (!record) return nullptr;
  auto json = to_json(*record);
  json["path"] = (run / record->checkpoint.path().filename()).string();  // for people; readers use "directory"
  return json;
}

}  // namespace

Json to_json(const ReportRecord& record) {
  Json json{{"attempt", record.attempt},
            {"rank", record.rank},
            {"index", record.index},
            {"time_s", record.time_s},
            {"metrics", to_json(record.metrics)}};
  if (record.checkpoint) json["checkpoint"] = record.checkpoint->path().filename().string();
  return json;
}

ReportRecord report_from_json(const Json& json, const std::filesystem::path& run) {
  return read("report", [&] {
    ReportRecord record;
    record.attempt = json.at("attempt").get<std::uint64_t>();
    record.rank = json.at("rank").get<int>();
    record.index = json.at("index").get<std::uint64_t>();
    record.time_s = json.at("time_s").get<double>();
    record.metrics = metrics_from_json(json.at("metrics"));
    if (const auto name = get_optional<std::string>(json, "checkpoint")) record.checkpoint = Checkpoint{run / *name};
    return record;
  });
}

Json to_json(const CheckpointRecord& record) {
  return Json{{"directory", record.checkpoint.path().filename().string()},
              {"index", record.index},
              {"metrics", to_json(record.metrics)}};
}

CheckpointRecord checkpoint_from_json(const Json& json, const std::filesystem::path& run) {
  return read("checkpoint record", [&] {
    CheckpointRecord record;
    record.checkpoint = Checkpoint{run / json.at("directory").get<std::string>()};
    record.index = json.at("index").get<std::uint64_t>();
    record.metrics = metrics_from_json(json.at("metrics"));
    return record;
  });
}

Json to_json(const RunError& error) {
  Json json{{"code", static_cast<int>(error.code)}, {"name", name(error.code)}, {"message", error.message}};
  set_optional(json, "rank", error.rank);
  set_optional(json, "signal", error.signal);
  set_optional(json, "exit_code", error.exit_code);
  set_optional(json, "step", error.step);
  set_optional(json, "pid", error.pid);
  json["last_lines"] = error.last_lines;
  if (!error.details.empty()) json["details"] = error.details;
  if (!error.node.empty()) json["node"] = error.node;
  return json;
}

RunError error_from_json(const Json& json) {
  return read("error record", [&] {
    RunError error;
    error.code = static_cast<Errc>(json.at("code").get<std::uint16_t>());
    error.message = json.at("message").get<std::string>();
    error.rank = get_optional<int>(json, "rank");
    error.signal = get_optional<int>(json, "signal");
    error.exit_code = get_optional<int>(json, "exit_code");
    error.last_lines = json.at("last_lines").get<std::vector<std::string>>();
    error.step = get_optional<std::uint64_t>(json, "step");
    error.pid = get_optional<std::int64_t>(json, "pid");
    error.details = get_optional<std::string>(json, "details").value_or("");
    error.node = get_optional<std::string>(json, "node").value_or("");
    return error;
  });
}

Json to_json(const Result& result) {
  Json json{{"metrics", to_json(result.metrics)},
            {"best_checkpoint", json_or_null(result.best_checkpoint, result.path)},
            {"checkpoint", json_or_null(result.checkpoint, result.path)}};
  json["checkpoints"] = Json::array();
  for (const auto& record : result.checkpoints) json["checkpoints"].push_back(to_json(record));
  json["best_checkpoints"] = Json::array();
  for (const auto& record : result.best_checkpoints) json["best_checkpoints"].push_back(to_json(record));
  json["error"] = result.error ? to_json(*result.error) : Json(nullptr);
  json["stopped_early"] = result.stopped_early;
  json["preempted"] = result.preempted;
  json["warnings"] = result.warnings;
  json["path"] = result.path.string();
  if (!result.post_mortem.empty()) json["post_mortem"] = result.post_mortem;
  json["history"] = Json::array();
  for (const auto& record : result.history) json["history"].push_back(to_json(record));
  return json;
}

Result result_from_json(const Json& json, const std::filesystem::path& run) {
  return read("result", [&] {
    Result result;
    result.path = run;
    result.metrics = metrics_from_json(json.at("metrics"));
    const auto record = [&](const char* key) -> std::optional<CheckpointRecord> {
      if (json.at(key).is_null()) return std::nullopt;
      return checkpoint_from_json(json.at(key), run);
    };
    result.best_checkpoint = record("best_checkpoint");
    result.checkpoint = record("checkpoint");
    for (const auto& entry : json.at("checkpoints")) result.checkpoints.push_back(checkpoint_from_json(entry, run));
    for (const auto& entry : json.at("best_checkpoints")) result.best_checkpoints.push_back(checkpoint_from_json(entry, run));
    if (!json.at("error").is_null()) result.error = error_from_json(json.at("error"));
    result.stopped_early = json.at("stopped_early").get<bool>();
    result.preempted = get_optional<bool>(json, "preempted").value_or(false);
    result.post_mortem = get_optional<std::string>(json, "post_mortem").value_or("");
    if (json.contains("warnings")) result.warnings = json["warnings"].get<std::vector<std::string>>();
    for (const auto& entry : json.at("history")) result.history.push_back(report_from_json(entry, run));
    return result;
  });
}

Metrics latest_metrics(const std::vector<ReportRecord>& history) {
  const ReportRecord* latest = nullptr;
  for (const auto& record : history) {
    if (!latest || record.rank <= latest->rank) latest = &record;
  }
  return latest ? latest->metrics : Metrics{};
}

}  // namespace troupe

#include "operator_messages.hpp"

#include <nlohmann/json.hpp>

namespace troupe::detail {

namespace {

using Json = nlohmann::ordered_json;

Json resources_to_json(const Resources& resources) {
  return {{"cpus", resources.cpus}, {"gpus", resources.gpus}, {"memory_bytes", resources.memory_bytes}, {"custom", resources.custom}};
}

Resources resources_from(const Json& json) {
  return {json.at("cpus").get<double>(), json.at("gpus").get<double>(), json.at("memory_bytes").get<std::uint64_t>(), json.at("custom").get<std::map<std::string, double>>()};
}

const char* word(NodeState state) { return state == NodeState::Up ? "up" : state == NodeState::Draining ? "draining" : "away"; }

Json node_to_json(const NodeStatus& node) {
  return {{"name", node.name},
          {"address", node.address},
          {"state", word(node.state)},
          {"total", resources_to_json(node.total)},
          {"free", resources_to_json(node.free)},
          {"labels", node.labels},
          {"pid", node.pid},
          {"heard_seconds_ago", node.heard_seconds_ago},
          {"ranks", node.ranks}};
}

NodeState state_from(const std::string& text) {
  for (const auto state : {NodeState::Up, NodeState::Draining, NodeState::Away}) {
    if (text == word(state)) return state;
  }
  throw Failure{Errc::ProtocolError, "the head says that a node is '" + text.substr(0, 64) + "', which this command does not know"};
}

NodeStatus node_from(const Json& json) {
  NodeStatus node;
  node.name = json.at("name").get<std::string>();
  node.address = json.at("address").get<std::string>();
  node.state = state_from(json.at("state").get<std::string>());
  node.total = resources_from(json.at("total"));
  node.free = resources_from(json.at("free"));
  node.labels = json.at("labels").get<Labels>();
  node.pid = json.at("pid").get<std::int64_t>();
  node.heard_seconds_ago = json.at("heard_seconds_ago").get<double>();
  node.ranks = json.at("ranks").get<std::vector<std::string>>();
  return node;
}

/// A report as JSON where it is sound.
Json report(const std::string& text) {
  auto json = Json::parse(text, [](int depth, Json::parse_event_t, Json&) { return depth <= 16; }, false);
  return json.is_discarded() ? Json(nullptr) : json;
}

Json run_to_json(const RunStatus& run) {
  return {{"name", run.name},
          {"path", run.path},
          {"state", run.state},
          {"attempt", run.attempt},
          {"num_ranks", run.num_ranks},
          {"restarts", run.restarts},
          {"node_of_rank", run.node_of_rank},
          {"step", run.step},
          {"steps_per_second", run.steps_per_second},
          {"last_report", report(run.last_report_json)},
          {"error", run.error}};
}

RunStatus run_from(const Json& json) {
  RunStatus run;
  run.name = json.at("name").get<std::string>();
  run.path = json.at("path").get<std::string>();
  run.state = json.at("state").get<std::string>();
  run.attempt = json.at("attempt").get<std::uint64_t>();
  run.num_ranks = json.at("num_ranks").get<int>();
  run.restarts = json.at("restarts").get<int>();
  run.node_of_rank = json.at("node_of_rank").get<std::vector<std::string>>();
  run.step = json.at("step").get<std::uint64_t>();
  run.steps_per_second = json.at("steps_per_second").get<double>();
  if (!json.at("last_report").is_null()) run.last_report_json = json.at("last_report").dump();
  run.error = json.at("error").get<std::string>();
  return run;
}

}  // namespace

Json to_json(const ClusterStatus& status) {
  Json nodes = Json::array(), runs = Json::array();
  for (const auto& node : status.nodes) nodes.push_back(node_to_json(node));
  for (const auto& run : status.runs) runs.push_back(run_to_json(run));
  return {{"up_seconds", status.up_seconds}, {"nodes", std::move(nodes)}, {"runs", std::move(runs)}};
}

ClusterStatus status_from_json(const Json& json) {
  ClusterStatus status;
  status.up_seconds = json.at("up_seconds").get<double>();
  for (const auto& node : json.at("nodes")) status.nodes.push_back(node_from(node));
  for (const auto& run : json.at("runs")) status.runs.push_back(run_from(run));
  return status;
}

}  // namespace troupe::detail

#include "cluster_text.hpp"

#include "checkpoint_text.hpp"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

namespace troupe::tools {

namespace {

using Table = std::vector<std::vector<std::string>>;

constexpr std::size_t longest_cell = 60;

std::string number(double value) {
  char text[32];
  (void)std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

std::string cell(std::string text) {
  text = printable(std::move(text));
  if (text.size() > longest_cell) text = text.substr(0, longest_cell) + "…";
  return text.empty() ? "-" : text;
}

std::string share(double free, double total) { return total == 0 ? "-" : number(free) + "/" + number(total); }

std::string labels_text(const Labels& labels) {
  std::string text;
  for (const auto& [key, value] : labels) text += (text.empty() ? "" : " ") + key + "=" + value;
  return text;
}

/// "a b×2": where a run's ranks are.
std::string places_text(const std::vector<std::string>& node_of_rank) {
  std::string text;
  for (std::size_t i = 0; i < node_of_rank.size();) {
    std::size_t end = i;
    while (end < node_of_rank.size() && node_of_rank[end] == node_of_rank[i]) ++end;
    text += (text.empty() ? "" : " ") + (node_of_rank[i].empty() ? "?" : node_of_rank[i]) + (end - i > 1 ? "×" + std::to_string(end - i) : "");
    i = end;
  }
  return text;
}

/// "loss=0.51 epoch=2" of a report's metrics.
std::string report_text(const std::string& json) {
  const auto report = nlohmann::ordered_json::parse(json, nullptr, false);
  if (!report.is_object() || !report.contains("metrics") || !report["metrics"].is_object()) return json;
  std::string text;
  for (const auto& [key, value] : report["metrics"].items()) {
    text += (text.empty() ? "" : " ") + key + "=" + (value.is_number_float() ? number(value.get<double>()) : value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text;
}

std::string state_text(NodeState state) { return state == NodeState::Up ? "up" : state == NodeState::Draining ? "draining" : "away"; }

}  // namespace

std::string printable(std::string text) {
  std::replace_if(text.begin(), text.end(), [](unsigned char c) { return (c < 0x20 && c != '\t') || c == 0x7f; }, '?');
  return text;
}

void print_status(const ClusterStatus& status) {
  const auto up = std::count_if(status.nodes.begin(), status.nodes.end(), [](const NodeStatus& node) { return node.state == NodeState::Up; });
  std::printf("%zu nodes, %ld up; %zu runs\n\n", status.nodes.size(), static_cast<long>(up), status.runs.size());
  Table nodes{{"NODE", "STATE", "ADDRESS", "CPUS FREE", "GPUS FREE", "MEMORY", "RANKS", "HEARD", "LABELS"}};
  for (const auto& node : status.nodes) {
    nodes.push_back({cell(node.name), state_text(node.state), cell(node.address), share(node.free.cpus, node.total.cpus), share(node.free.gpus, node.total.gpus),
                     size_text(node.total.memory_bytes), std::to_string(node.ranks.size()), number(node.heard_seconds_ago) + " s ago", cell(labels_text(node.labels))});
  }
  if (nodes.size() > 1) print_table(nodes);
  else std::printf("no node has joined; on another terminal: troupe node --join HOST:PORT\n");
  Table runs{{"RUN", "STATE", "RANKS", "ATTEMPT", "RESTARTS", "STEP", "STEPS/S", "WHERE", "LAST REPORT"}};
  for (const auto& run : status.runs) {
    runs.push_back({cell(run.name), cell(run.state), std::to_string(run.num_ranks), std::to_string(run.attempt), std::to_string(run.restarts), std::to_string(run.step),
                    number(run.steps_per_second), cell(places_text(run.node_of_rank)), cell(run.error.empty() ? report_text(run.last_report_json) : run.error)});
  }
  std::printf("\n");
  if (runs.size() > 1) print_table(runs);
  else std::printf("no runs\n");
}

}  // namespace troupe::tools

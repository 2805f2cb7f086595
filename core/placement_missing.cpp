#include "placement_room.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace troupe::detail {

namespace {

constexpr std::size_t most_nodes_named = 8;

std::string number(double value) {
  char text[32];
  (void)std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

std::string bytes(std::uint64_t value) {
  constexpr double gib = 1 << 30, mib = 1 << 20;
  const auto size = static_cast<double>(value);
  return size >= gib ? number(size / gib) + " GiB" : number(size / mib) + " MiB";
}

std::string counted(double amount, const std::string& one) { return number(amount) + " " + one + (amount == 1 ? "" : "s"); }

std::string join(const std::vector<std::string>& parts, const std::string& between) {
  std::string text;
  for (const auto& part : parts) text += (text.empty() ? "" : between) + part;
  return text;
}

std::string say(const RankNeeds& each) {
  std::vector<std::string> parts;
  const auto& needs = each.resources;
  if (needs.gpus > 0) parts.push_back(counted(needs.gpus, "gpu"));
  if (needs.cpus > 0) parts.push_back(counted(needs.cpus, "cpu"));
  if (needs.memory_bytes > 0) parts.push_back(bytes(needs.memory_bytes) + " of memory");
  for (const auto& [kind, amount] : needs.custom) {
    if (amount > 0) parts.push_back(number(amount) + " " + kind);
  }
  auto text = parts.empty() ? std::string{"a node"} : join(parts, ", ") + " each";
  for (const auto& [key, value] : each.labels) text += (text.find(" with ") == std::string::npos ? " with " : ", ") + key + "=" + value;
  return text;
}

double of(const std::map<std::string, double>& custom, const std::string& kind) {
  const auto found = custom.find(kind);
  return found == custom.end() ? 0 : found->second;
}

/// What keeps one more rank than `room` from this node.
std::string lack(const NodeRoom& node, const RankNeeds& each, int room) {
  if (!node.takes_ranks) return "takes no ranks (it drains or is away)";
  for (const auto& [key, value] : each.labels) {
    const auto found = node.labels.find(key);
    if (found == node.labels.end()) return "has no label " + key;
    if (found->second != value) return "has " + key + "=" + found->second;
  }
  const auto short_of = [&](const Resources& only) { return room_for(node, {only, {}}, room + 1) <= room; };
  const auto& needs = each.resources;
  std::vector<std::string> parts;
  if (needs.gpus > 0 && short_of({0, needs.gpus})) parts.push_back(number(node.free.gpus) + " of " + counted(node.total.gpus, "gpu"));
  if (needs.cpus > 0 && short_of({needs.cpus})) parts.push_back(number(node.free.cpus) + " of " + counted(node.total.cpus, "cpu"));
  if (needs.memory_bytes > 0 && short_of({0, 0, needs.memory_bytes})) parts.push_back(bytes(node.free.memory_bytes) + " of " + bytes(node.total.memory_bytes));
  for (const auto& [kind, amount] : needs.custom) {
    if (amount > 0 && short_of({0, 0, 0, {{kind, amount}}})) parts.push_back(number(of(node.free.custom, kind)) + " of " + number(of(node.total.custom, kind)) + " " + kind);
  }
  return parts.empty() ? "" : "has " + join(parts, " and ") + " free";
}

}  // namespace

std::string say_missing(std::span<const NodeRoom> nodes, const RankNeeds& each, int count, PlacementStrategy strategy, std::span<const int> room) {
  const auto ranks = [](std::int64_t n) { return std::to_string(n) + (n == 1 ? " rank" : " ranks"); };
  if (nodes.empty()) return "no node has joined; " + ranks(count) + " need " + say(each);
  std::int64_t fit = 0;
  const bool own = strategy == PlacementStrategy::StrictSpread;
  for (const int one : room) fit = strategy == PlacementStrategy::StrictPack ? std::max<std::int64_t>(fit, one) : fit + (own ? std::min(one, 1) : one);
  std::string text = std::to_string(fit) + " of " + ranks(count) + " fit";
  if (strategy == PlacementStrategy::StrictPack) text += " on one node";
  if (own) text += ", each on a node of its own";
  text += ": " + std::to_string(count - fit) + " more need " + say(each);
  std::vector<std::string> parts;
  std::size_t unnamed = 0;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (own && room[i] > 0) continue;  // has its rank
    const auto why = lack(nodes[i], each, room[i]);
    if (why.empty()) continue;
    if (parts.size() < most_nodes_named) parts.push_back("node " + nodes[i].name + " " + why + (room[i] > 0 ? ", for " + ranks(room[i]) : ""));
    else ++unnamed;
  }
  if (!parts.empty()) text += "; " + join(parts, "; ");
  if (unnamed > 0) text += "; and " + std::to_string(unnamed) + " more nodes";
  return text;
}

}  // namespace troupe::detail

#include "placement_room.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace troupe {

namespace {

constexpr double slack = 1e-9;  // three thirds are a whole

double sum(double value) {
  const double whole = std::round(value);
  return std::abs(value - whole) < slack ? whole : value;
}

double of(const std::map<std::string, double>& custom, const std::string& kind) {
  const auto found = custom.find(kind);
  return found == custom.end() ? 0 : found->second;
}

/// How often `need` fits into `free`.
double times(double free, double need) { return need <= 0 ? std::numeric_limits<double>::infinity() : std::floor(free / need + slack); }

double times_devices(const NodeRoom& node, double gpus) {
  if (gpus <= 0) return std::numeric_limits<double>::infinity();
  const double share = detail::device_share(gpus);
  if (node.devices.empty()) {
    if (share >= 1) return times(std::floor(node.free.gpus + slack), share);
    const double whole = std::floor(node.free.gpus + slack);
    return whole * std::round(1 / share) + times(std::max(0.0, node.free.gpus - whole), share);
  }
  if (share >= 1) return times(static_cast<double>(std::count_if(node.devices.begin(), node.devices.end(), [](double free) { return free > 1 - slack; })), share);
  double ranks = 0;
  for (const double free : node.devices) ranks += times(free, share);
  return ranks;
}

}  // namespace

namespace detail {

double device_share(double gpus) { return gpus <= 0 || gpus >= 1 ? gpus : 1 / std::floor(1 / gpus + 1e-6); }

int room_for(const NodeRoom& node, const RankNeeds& each, int limit) {
  if (!node.takes_ranks) return 0;
  for (const auto& [key, value] : each.labels) {
    const auto found = node.labels.find(key);
    if (found == node.labels.end() || found->second != value) return 0;
  }
  const auto& needs = each.resources;
  double ranks = std::min({static_cast<double>(limit), times(node.free.cpus, needs.cpus), times_devices(node, needs.gpus)});
  if (needs.memory_bytes > 0) ranks = std::min(ranks, static_cast<double>(node.free.memory_bytes / needs.memory_bytes));
  for (const auto& [kind, amount] : needs.custom) ranks = std::min(ranks, times(of(node.free.custom, kind), amount));
  return static_cast<int>(std::max(0.0, ranks));
}

}  // namespace detail

void check(const Resources& needs) {
  const auto sound = [](const std::string& kind, double amount) {
    if (!std::isfinite(amount) || amount < 0) throw Failure{Errc::InvalidConfig, kind + " = " + std::to_string(amount) + ": a resource is a number from 0 on"};
  };
  sound("cpus", needs.cpus);
  sound("gpus", needs.gpus);
  for (const auto& [kind, amount] : needs.custom) sound(kind, amount);
  if (needs.gpus > 1 && std::abs(needs.gpus - std::round(needs.gpus)) > slack) {
    throw Failure{Errc::InvalidConfig, "gpus = " + std::to_string(needs.gpus) + ": beyond one device a rank takes whole ones; give it " + std::to_string(std::lround(std::ceil(needs.gpus)))};
  }
}

bool take(Resources& free, const Resources& needs) {
  const NodeRoom node{"", free, free, {}};
  if (detail::room_for(node, {needs, {}}, 1) < 1) return false;
  free.cpus = sum(free.cpus - needs.cpus);
  free.gpus = sum(free.gpus - detail::device_share(needs.gpus));
  free.memory_bytes -= needs.memory_bytes;
  for (const auto& [kind, amount] : needs.custom) {
    if (amount > 0) free.custom[kind] = sum(free.custom[kind] - amount);
  }
  return true;
}

void give_back(Resources& free, const Resources& needs) {
  free.cpus = sum(free.cpus + needs.cpus);
  free.gpus = sum(free.gpus + detail::device_share(needs.gpus));
  free.memory_bytes += needs.memory_bytes;
  for (const auto& [kind, amount] : needs.custom) {
    if (amount > 0) free.custom[kind] = sum(free.custom[kind] + amount);
  }
}

std::vector<int> take_devices(std::vector<double>& devices, double gpus) {
  const double share = detail::device_share(gpus);
  std::vector<int> taken;
  if (share <= 0) return taken;
  if (share < 1) {
    int fullest = -1;
    for (int i = 0; i < static_cast<int>(devices.size()); ++i) {
      const double free = devices[static_cast<std::size_t>(i)];
      if (free > share - slack && (fullest < 0 || free < devices[static_cast<std::size_t>(fullest)])) fullest = i;
    }
    if (fullest >= 0) taken.push_back(fullest);
  } else {
    for (int i = 0; i < static_cast<int>(devices.size()) && static_cast<double>(taken.size()) < share - slack; ++i) {
      if (devices[static_cast<std::size_t>(i)] > 1 - slack) taken.push_back(i);
    }
    if (static_cast<double>(taken.size()) < share - slack) return {};
  }
  for (const int i : taken) devices[static_cast<std::size_t>(i)] = sum(devices[static_cast<std::size_t>(i)] - std::min(share, 1.0));
  return taken;
}

void give_back_devices(std::vector<double>& devices, double gpus, std::span<const int> taken) {
  for (const int i : taken) devices.at(static_cast<std::size_t>(i)) = sum(devices.at(static_cast<std::size_t>(i)) + std::min(detail::device_share(gpus), 1.0));
}

}  // namespace troupe

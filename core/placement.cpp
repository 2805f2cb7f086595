#include "placement_room.hpp"

#include <troupe/config.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <cctype>
#include <numeric>
#include <set>

namespace troupe {

namespace {

/// Nodes that have room, as places in the list of all.
struct Rooms {
  std::vector<int> room;              // by node
  std::vector<bool> preferred;        // by node
  std::vector<std::size_t> usable;    // nodes with room
  std::int64_t total = 0;
};

constexpr int unlimited = 1 << 30;  // ranks that need nothing

Rooms measure(std::span<const NodeRoom> nodes, const RankNeeds& each, std::span<const std::string> preferred) {
  const std::set<std::string> names{preferred.begin(), preferred.end()};
  Rooms rooms;
  rooms.room.reserve(nodes.size());
  rooms.preferred.reserve(nodes.size());
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    rooms.room.push_back(detail::room_for(nodes[i], each, unlimited));
    rooms.preferred.push_back(names.contains(nodes[i].name));
    if (rooms.room[i] > 0) rooms.usable.push_back(i);
    rooms.total += rooms.room[i];
  }
  return rooms;
}

/// Ranks per node, laid one after the other in the nodes' own order.
std::vector<std::size_t> lay(const std::vector<int>& ranks_of, int count) {
  std::vector<std::size_t> node_of;
  node_of.reserve(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < ranks_of.size(); ++i) node_of.insert(node_of.end(), static_cast<std::size_t>(ranks_of[i]), i);
  return node_of;
}

/// The tightest node that holds all `count`, a preferred one first; nodes.size() when there is none.
std::size_t tightest(const Rooms& rooms, std::span<const std::size_t> among, std::int64_t count) {
  std::size_t best = rooms.room.size();
  for (const auto i : among) {
    if (rooms.room[i] < count) continue;
    const bool better = best == rooms.room.size() || (rooms.preferred[i] && !rooms.preferred[best]) ||
                        (rooms.preferred[i] == rooms.preferred[best] && rooms.room[i] < rooms.room[best]);
    if (better) best = i;
  }
  return best;
}

/// The fewest nodes that hold `count`; of such sets one with the most preferred nodes. Each kind's roomiest, the preferred first.
std::vector<std::size_t> fewest(const Rooms& rooms, std::int64_t count) {
  std::vector<std::size_t> kinds[2];  // roomiest first; [1] is preferred
  for (const auto i : rooms.usable) kinds[rooms.preferred[i] ? 1 : 0].push_back(i);
  std::vector<std::int64_t> sums[2];
  for (int kind = 0; kind < 2; ++kind) {
    std::stable_sort(kinds[kind].begin(), kinds[kind].end(), [&](auto a, auto b) { return rooms.room[a] > rooms.room[b]; });
    sums[kind].push_back(0);
    for (const auto i : kinds[kind]) sums[kind].push_back(sums[kind].back() + rooms.room[i]);
  }
  std::vector<std::int64_t> all;
  for (const auto i : rooms.usable) all.push_back(rooms.room[i]);
  std::sort(all.rbegin(), all.rend());
  std::size_t number = 0;
  for (std::int64_t sum = 0; sum < count; ++number) sum += all[number];
  for (std::size_t of_preferred = std::min(number, kinds[1].size());; --of_preferred) {
    const auto others = number - of_preferred;
    if (others >= sums[0].size() || sums[1][of_preferred] + sums[0][others] < count) continue;
    std::vector<std::size_t> chosen{kinds[1].begin(), kinds[1].begin() + static_cast<std::ptrdiff_t>(of_preferred)};
    chosen.insert(chosen.end(), kinds[0].begin(), kinds[0].begin() + static_cast<std::ptrdiff_t>(others));
    return chosen;
  }
}

std::vector<int> pack(const Rooms& rooms, int count) {
  auto chosen = fewest(rooms, count);
  // The last node need not be a roomy one: the tightest that holds the rest leaves room for others.
  std::int64_t rest = count;
  for (std::size_t i = 0; i + 1 < chosen.size(); ++i) rest -= rooms.room[chosen[i]];
  std::vector<bool> taken(rooms.room.size(), false);
  for (std::size_t i = 0; i + 1 < chosen.size(); ++i) taken[chosen[i]] = true;
  std::vector<std::size_t> left;
  for (const auto i : rooms.usable) {
    if (!taken[i] && rooms.preferred[i] == rooms.preferred[chosen.back()]) left.push_back(i);
  }
  chosen.back() = tightest(rooms, left, rest);
  std::vector<int> ranks_of(rooms.room.size(), 0);
  std::int64_t open = count;
  for (const auto i : chosen) {
    ranks_of[i] = static_cast<int>(std::min<std::int64_t>(rooms.room[i], open));
    open -= ranks_of[i];
  }
  return ranks_of;
}

/// Usable nodes, best first: preferred, then roomier, then as they were given.
std::vector<std::size_t> by_merit(const Rooms& rooms) {
  auto order = rooms.usable;
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    if (rooms.preferred[a] != rooms.preferred[b]) return static_cast<bool>(rooms.preferred[a]);
    return rooms.room[a] > rooms.room[b];
  });
  return order;
}

/// The lowest level at which min(room, level) over all nodes holds `count`; those at the level that are not needed give one back.
std::vector<int> spread(const Rooms& rooms, int count) {
  const auto held = [&](int level) {
    return std::accumulate(rooms.room.begin(), rooms.room.end(), std::int64_t{0}, [&](std::int64_t sum, int room) { return sum + std::min(room, level); });
  };
  int low = 1, high = count;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    held(middle) >= count ? high = middle : low = middle + 1;
  }
  std::vector<int> ranks_of(rooms.room.size(), 0);
  for (const auto i : rooms.usable) ranks_of[i] = std::min(rooms.room[i], low);
  auto excess = held(low) - count;
  const auto order = by_merit(rooms);
  for (auto i = order.rbegin(); i != order.rend() && excess > 0; ++i) {
    if (ranks_of[*i] == low) --ranks_of[*i], --excess;
  }
  return ranks_of;
}

}  // namespace

const char* name(PlacementStrategy strategy) noexcept {
  switch (strategy) {
    case PlacementStrategy::Pack: return "PACK";
    case PlacementStrategy::Spread: return "SPREAD";
    case PlacementStrategy::StrictPack: return "STRICT_PACK";
    case PlacementStrategy::StrictSpread: return "STRICT_SPREAD";
  }
  return "?";
}

PlacementStrategy parse_placement_strategy(const std::string& text) {
  std::vector<std::string> names;
  for (const auto strategy : {PlacementStrategy::Pack, PlacementStrategy::Spread, PlacementStrategy::StrictPack, PlacementStrategy::StrictSpread}) {
    if (text == name(strategy)) return strategy;
    names.emplace_back(name(strategy));
  }
  std::string upper = text;
  std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
  const auto nearest = nearest_name(upper, names);
  throw Failure{Errc::InvalidConfig, "placement strategy '" + text + "' is unknown; " +
                                         (nearest.empty() ? "there are PACK, SPREAD, STRICT_PACK and STRICT_SPREAD" : "did you mean " + nearest + "?")};
}

RankPlaces place_ranks(std::span<const NodeRoom> nodes, const RankNeeds& each, int count, PlacementStrategy strategy, std::span<const std::string> preferred) {
  if (count < 0) throw Failure{Errc::InvalidArgument, "cannot place " + std::to_string(count) + " ranks"};
  check(each.resources);
  if (count == 0) return {};
  const auto rooms = measure(nodes, each, preferred);
  std::vector<int> ranks_of(nodes.size(), 0);
  bool fits = rooms.total >= count;
  if (strategy == PlacementStrategy::StrictPack) {
    const auto node = tightest(rooms, rooms.usable, count);
    fits = node < nodes.size();
    if (fits) ranks_of[node] = count;
  } else if (strategy == PlacementStrategy::StrictSpread) {
    const auto order = by_merit(rooms);
    fits = order.size() >= static_cast<std::size_t>(count);
    for (std::size_t i = 0; fits && i < static_cast<std::size_t>(count); ++i) ranks_of[order[i]] = 1;
  } else if (fits) {
    ranks_of = strategy == PlacementStrategy::Pack ? pack(rooms, count) : spread(rooms, count);
  }
  if (!fits) return {{}, detail::say_missing(nodes, each, count, strategy, rooms.room)};
  return {lay(ranks_of, count), {}};
}

}  // namespace troupe

#pragma once

#include <troupe/placement.hpp>

#include <span>
#include <string>
#include <vector>

namespace troupe::detail {

/// What a rank takes of a device: the smallest 1/k that is not below `gpus`; whole counts stay.
[[nodiscard]] double device_share(double gpus);

/// How many ranks a node has room for, at most `limit`; 0 when it takes none or lacks a label.
[[nodiscard]] int room_for(const NodeRoom& node, const RankNeeds& each, int limit);

/// Why ranks did not fit, in words. @param room of each node, by `room_for`
[[nodiscard]] std::string say_missing(std::span<const NodeRoom> nodes, const RankNeeds& each, int count, PlacementStrategy strategy, std::span<const int> room);

}  // namespace troupe::detail

#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// What a node offers or a rank needs. Fractions are allowed: two ranks of `gpus = 0.5` share a device. A rank never straddles devices, so its
/// fraction counts as the share that fits without a rest: 0.4 as a half. Beyond one, `gpus` is whole.
struct Resources {
  double cpus = 0;
  double gpus = 0;
  std::uint64_t memory_bytes = 0;
  std::map<std::string, double> custom{};  ///< the user's own kinds, by name
  bool operator==(const Resources&) const = default;
};

using Labels = std::map<std::string, std::string>;

/// How the ranks of a group are laid over nodes: Ray's placement strategies.
enum class PlacementStrategy : std::uint8_t {
  Pack,          ///< on as few nodes as will do
  Spread,        ///< evenly, over as many nodes as there are
  StrictPack,    ///< all on one node, or not at all
  StrictSpread,  ///< each on a node of its own, or not at all
};

/// "PACK", "STRICT_SPREAD". Throws Failure{InvalidConfig} naming the nearest.
[[nodiscard]] PlacementStrategy parse_placement_strategy(const std::string& text);
[[nodiscard]] const char* name(PlacementStrategy strategy) noexcept;

/// A node as it is now.
struct NodeRoom {
  std::string name;
  Resources free;     ///< what no rank has taken
  Resources total;
  Labels labels;
  bool takes_ranks = true;  ///< false: it drains, or it is not heard of
  std::vector<double> devices{};  ///< what is free of each device; empty: `free.gpus` counts whole ones and one rest
};

struct RankNeeds {
  Resources resources;
  Labels labels;  ///< that its node must have
};

struct RankPlaces {
  /// Index into `nodes` for every rank; ranks of a node follow each other. Empty: not enough room.
  std::vector<std::size_t> node_of;
  std::string missing;  ///< "4 of 6 ranks fit: 2 more need 1 gpu each; node b has 0 of 1 free, node c drains"
};

/// Lays `count` ranks over nodes. Pure: the same input gives the same places. Among equal nodes those in `preferred` (by name) come first,
/// so that ranks stay where their processes are. Time: O((nodes + count) log nodes).
[[nodiscard]] RankPlaces place_ranks(std::span<const NodeRoom> nodes, const RankNeeds& each, int count, PlacementStrategy strategy,
                                     std::span<const std::string> preferred = {});

/// Throws Failure{InvalidConfig}: something is negative, not finite, or 1.5 devices.
void check(const Resources& needs);

/// Takes from `free`; returns false and leaves it alone when it does not fit.
[[nodiscard]] bool take(Resources& free, const Resources& needs);
void give_back(Resources& free, const Resources& needs);

/// Which devices a rank of `gpus` gets, taken from `devices`: the fullest that has room for a fraction, the first free ones for whole ones.
/// Empty: they do not fit (or it needs none).
[[nodiscard]] std::vector<int> take_devices(std::vector<double>& devices, double gpus);
void give_back_devices(std::vector<double>& devices, double gpus, std::span<const int> taken);

}  // namespace troupe

#pragma once

#include "ddp.hpp"

#include <troupe/sharding_options.hpp>

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstddef>
#include <string>
#include <vector>

namespace troupe {
class Unit;
}

namespace troupe::detail {

/// Parameters that live in one flat buffer: one element type, all trained or all frozen.
struct GroupPlan {
  std::string label;                ///< whose collectives these are
  std::vector<std::size_t> params;  ///< indices into ShardPlan::params
  bool freed = false;               ///< gathered for use and freed again; else whole between steps
  bool trained = true;
};

/// A module whose groups are gathered before its forward.
struct UnitPlan {
  std::string name;  ///< "" is the root
  Unit* module = nullptr;
  std::vector<std::size_t> groups;  ///< freed ones: this unit's; whole ones: those with a parameter of this unit
};

struct ShardPlan {
  NamedTensors params;  ///< each once, under its first name
  std::vector<GroupPlan> groups;
  std::vector<UnitPlan> units;       ///< root first when it is one
  std::vector<std::string> notices;  ///< what the user should know about the choice
};

/// Cuts a module into groups and units. A parameter belongs to the innermost unit that holds it; a tied one to the
/// innermost unit that holds all its places. Throws Failure{InvalidConfig} for a class name that no module has, and
/// Failure{Unsupported} for one that is no TROUPE_UNIT.
[[nodiscard]] ShardPlan plan_shards(torch::nn::Module& module, const ShardingOptions& options);

/// A module's class as users write it: without namespace and "Impl".
[[nodiscard]] std::string class_name(const torch::nn::Module& module);

}  // namespace troupe::detail

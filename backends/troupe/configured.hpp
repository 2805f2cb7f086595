#pragma once

#include <troupe/effective_config.hpp>
#include <troupe/optimizer.hpp>
#include <troupe/scheduler.hpp>

#include <memory>
#include <vector>

namespace troupe {

/// The optimizer that a configuration names (`EffectiveConfig::optimizer`), over parameter groups; what a group leaves
/// negative is the configuration's. Throws Failure{InvalidConfig} for an unknown type, and when there is no learning rate.
[[nodiscard]] std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config, std::vector<ParamGroup> groups);

/// The schedule that a configuration names (`EffectiveConfig::scheduler`), one step an update. Learning rates that the
/// schedule gives in absolute numbers are scaled alike in every group. The optimizer must outlive it.
[[nodiscard]] LRScheduler make_scheduler(Optimizer& optimizer, const LRScheduleConfig& config);

}  // namespace troupe

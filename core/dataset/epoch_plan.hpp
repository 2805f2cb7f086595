#pragma once

#include "engine.hpp"

namespace troupe::detail {

/// What a stream reads in one epoch.
struct EpochPlan {
  std::vector<OrderEntry> order;
  std::shared_ptr<const std::vector<RowRange>> ranges;
  std::map<std::int64_t, std::shared_ptr<const Source>> passes;  ///< the source of each pass in `order`
};

/// The part of `epoch` that the stream gives; counts rows and prepares the source where it must.
[[nodiscard]] EpochPlan plan_epoch(const Plan& plan, const StreamOptions& options, const std::optional<Resumed>& resumed, std::int64_t epoch,
                                   std::stop_token stop);

/// The ranges of `epoch` that the stream gives, as plan_epoch has them.
[[nodiscard]] std::vector<RowRange> epoch_ranges(const Plan& plan, const StreamOptions& options, const std::optional<Resumed>& resumed, std::int64_t epoch,
                                                 const std::vector<OrderEntry>& order);

/// The rank's share of a fresh epoch.
[[nodiscard]] std::vector<RowRange> fresh_share(const Plan& plan, const SplitOptions& split, const std::vector<OrderEntry>& order);

/// Throws Failure where the options contradict each other or the plan.
void check_options(const Plan& plan, const StreamOptions& options);

}  // namespace troupe::detail

#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <troupe/data/sharding.hpp>
#include <vector>

#include "batch_pipe.hpp"

namespace troupe {

/// The batches of one epoch on one rank, as indices. Immutable; any thread.
class EpochPlan {
 public:
  virtual ~EpochPlan() = default;
  [[nodiscard]] virtual std::int64_t size() const = 0;
  [[nodiscard]] virtual BatchMeta batch(std::int64_t number) const = 0;
  /// Samples of the order that all ranks have taken with their first `num_batches` batches each.
  [[nodiscard]] virtual std::int64_t samples_after(std::int64_t num_batches) const = 0;
  /// As LoaderState::remainder.
  [[nodiscard]] virtual std::int64_t remainder() const = 0;
};

/// Batches of equal length out of one order.
/// @param round_to the last batch is filled up from the order's beginning to a multiple of it.
[[nodiscard]] std::shared_ptr<const EpochPlan> flat_plan(const BatchSharding& sharding, std::vector<std::int64_t> order,
                                                         std::int64_t round_to = 1);

/// Batches of any length, dealt in turn: of `sharding` rank, world_size, drop_last and `first` count.
/// @param joined so many lists become one batch, filled up to a multiple of `round_to`.
[[nodiscard]] std::shared_ptr<const EpochPlan> list_plan(const BatchSharding& sharding,
                                                         std::vector<std::vector<std::int64_t>> lists,
                                                         std::int64_t joined = 1, std::int64_t round_to = 1);

/// Whether a batch sampler that promises `batch_size` keeps it; if so, its batches one after another. Throws
/// Failure{InvalidArgument} naming the batch.
[[nodiscard]] std::vector<std::int64_t> flattened(const std::vector<std::vector<std::int64_t>>& lists, std::int64_t batch_size);

/// The plan's batches from `first` on, without those in `ahead`.
class PlannedJobs final : public JobSource {
 public:
  PlannedJobs(std::shared_ptr<const EpochPlan> plan, std::int64_t first, const std::vector<std::int64_t>& ahead)
      : plan_(std::move(plan)), next_(first), ahead_(ahead.begin(), ahead.end()) {}
  [[nodiscard]] std::optional<BatchJob> next() override;

 private:
  std::shared_ptr<const EpochPlan> plan_;
  std::int64_t next_;
  std::set<std::int64_t> ahead_;
};

}  // namespace troupe

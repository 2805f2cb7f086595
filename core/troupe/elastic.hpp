#pragma once

#include <functional>

// What a loop does about its batch and learning rate when an elastic run has another number of ranks. Troupe itself changes
// neither; a loop asks a policy, or its own function of this type.

namespace troupe {

/// What one rank feeds to an update.
struct BatchPlan {
  int batch_size = 1;                   ///< samples of a rank's batch
  int gradient_accumulation_steps = 1;
  double lr = 0;
  bool operator==(const BatchPlan&) const = default;
};

/// From the plan for `planned_ranks` to one for `ranks`.
using BatchPolicy = std::function<BatchPlan(const BatchPlan& planned, int planned_ranks, int ranks)>;

/// The plan as it is: the global batch changes with the number of ranks.
[[nodiscard]] BatchPlan keep_batch_per_rank(const BatchPlan& planned, int planned_ranks, int ranks);
/// As keep_batch_per_rank, the learning rate in proportion to the global batch (Goyal et al. 2017).
[[nodiscard]] BatchPlan scale_lr_linearly(const BatchPlan& planned, int planned_ranks, int ranks);
/// As keep_batch_per_rank, the learning rate in proportion to the root of the global batch (Krizhevsky 2014).
[[nodiscard]] BatchPlan scale_lr_by_root(const BatchPlan& planned, int planned_ranks, int ranks);
/// Updates of exactly as many samples as planned: the same batch_size with other accumulation where that divides, else the largest batch that does.
/// Throws Failure{InvalidArgument} when no batch does: the samples of an update are no multiple of `ranks`.
[[nodiscard]] BatchPlan keep_global_batch(const BatchPlan& planned, int planned_ranks, int ranks);

}  // namespace troupe

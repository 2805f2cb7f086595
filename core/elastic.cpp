#include <troupe/elastic.hpp>
#include <troupe/errors.hpp>

#include <cmath>
#include <string>

namespace troupe {

namespace {

void check(const BatchPlan& planned, int planned_ranks, int ranks) {
  if (planned.batch_size >= 1 && planned.gradient_accumulation_steps >= 1 && planned_ranks >= 1 && ranks >= 1) return;
  throw Failure{Errc::InvalidArgument, "a batch plan's batch_size, gradient_accumulation_steps and numbers of ranks must be 1 or more"};
}

}  // namespace

BatchPlan keep_batch_per_rank(const BatchPlan& planned, int planned_ranks, int ranks) {
  check(planned, planned_ranks, ranks);
  return planned;
}

BatchPlan scale_lr_linearly(const BatchPlan& planned, int planned_ranks, int ranks) {
  check(planned, planned_ranks, ranks);
  return {planned.batch_size, planned.gradient_accumulation_steps, planned.lr * ranks / planned_ranks};
}

BatchPlan scale_lr_by_root(const BatchPlan& planned, int planned_ranks, int ranks) {
  check(planned, planned_ranks, ranks);
  return {planned.batch_size, planned.gradient_accumulation_steps, planned.lr * std::sqrt(static_cast<double>(ranks) / planned_ranks)};
}

BatchPlan keep_global_batch(const BatchPlan& planned, int planned_ranks, int ranks) {
  check(planned, planned_ranks, ranks);
  const long samples = static_cast<long>(planned.batch_size) * planned.gradient_accumulation_steps * planned_ranks;
  if (samples % ranks != 0) {
    throw Failure{Errc::InvalidArgument, "an update of " + std::to_string(samples) + " samples cannot be dealt evenly to " + std::to_string(ranks) +
                                             " ranks; choose another number of ranks, or a policy that changes the global batch"};
  }
  const long share = samples / ranks;
  long batch = planned.batch_size;
  while (share % batch != 0) --batch;  // ends at 1
  return {static_cast<int>(batch), static_cast<int>(share / batch), planned.lr};
}

}  // namespace troupe

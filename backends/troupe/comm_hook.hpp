#pragma once

#include <cstdint>

namespace troupe {

/// What replicated training sends instead of gradients; names as in Accelerate and torch.distributed.algorithms.
///
/// FP16, BF16: gradients rounded to 16 bits, so half of fp32's bytes; added in fp32 in rank order, and rounded again.
/// POWER_SGD: low-rank factors of each gradient matrix (Vogels, Karimireddy, Jaggi, arXiv 1905.13727).
/// BATCHED_POWER_SGD: the same of a whole bucket seen as one square matrix: fewer operations, worse approximation.
enum class CommHook : std::uint8_t { NO, FP16, BF16, POWER_SGD, BATCHED_POWER_SGD };
/// Rounds what a PowerSGD hook sends.
enum class CommWrapper : std::uint8_t { NO, FP16, BF16 };

/// Of the PowerSGD hooks; names and defaults as torch's PowerSGDState (start_powerSGD_iter: 1000 there too).
struct CommStateOption {
  int matrix_approximation_rank = 1;
  std::int64_t start_powerSGD_iter = 1000;  ///< reductions that are sent whole before it begins, counted from prepare()
  double min_compression_rate = 2;          ///< a matrix is compressed when this times its factors is less than itself
  bool use_error_feedback = true;           ///< what was lost is added to the next gradient
  bool warm_start = true;                   ///< begin with the factor of the step before
  double orthogonalization_epsilon = 0;     ///< added to norms that are divided by
  std::uint64_t random_seed = 0;
};

}  // namespace troupe

#pragma once

#include "bucket_reduction.hpp"

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace troupe::detail {

/// What of a bucket is sent as factors, and where these lie in the buffers that are sent.
struct PowerSgdPlan {
  struct Matrix {
    std::int64_t offset = 0;  ///< in the gradients
    std::int64_t rows = 0, cols = 0;
    std::int64_t rank = 0;
    std::int64_t p = 0, q = 0;  ///< offsets of P [rows, rank] and Q [cols, rank]
  };
  struct Rest {
    std::int64_t offset = 0, numel = 0;
    std::int64_t at = 0;  ///< offset in the buffer of the Ps
  };
  std::vector<Matrix> matrices;
  std::vector<Rest> rest;      ///< vectors and matrices not worth it: sent whole, beside the Ps
  std::int64_t p_numel = 0;    ///< of the Ps and the rest
  std::int64_t q_numel = 0;
  std::int64_t numel = 0;      ///< of the gradients, gaps included
  std::int64_t padded = 0;     ///< batched: elements of the square they are copied into; else 0
  std::vector<Segment> segments;  ///< batched: what is copied back; gaps stay zero
};

/// A parameter [n, …] is the matrix [n, rest]; as torch's powerSGD_hook chooses them.
[[nodiscard]] PowerSgdPlan plan_power_sgd(const BucketShape& shape, const CommStateOption& options);
/// The bucket as one square matrix, filled up with zeros; as torch's batched_powerSGD_hook.
[[nodiscard]] PowerSgdPlan plan_batched_power_sgd(const BucketShape& shape, const CommStateOption& options);

/// Makes the columns of `matrix` [n, r] orthonormal in place: modified Gram-Schmidt in fp64, each column projected
/// twice. A column that the ones before it span becomes a draw from `fresh`, or zero without one. False when there
/// was a number that is not finite; it stays.
bool orthogonalize(const at::Tensor& matrix, double epsilon, at::Generator* fresh);

/// One step of subspace iteration per reduction (Vogels et al., arXiv 1905.13727, algorithm 1): with M = gradient +
/// error, P = mean M Q, orthonormalised, Q = mean Mᵀ P, and the result P Qᵀ; what a rank's M is more than that is its
/// next error. Sends r(rows + cols) numbers for rows × cols. The error and the factors are not part of checkpoints.
class PowerSgdReduction final : public BucketReduction {
 public:
  PowerSgdReduction(Communicator& communicator, PowerSgdPlan plan, at::ScalarType type, std::optional<at::ScalarType> wire,
                    const CommStateOption& options, std::size_t index);
  void start(const at::Tensor& gradients) override;
  bool poll() override;
  void proceed() override;
  void finish() override;

 private:
  [[nodiscard]] at::Tensor p(const PowerSgdPlan::Matrix& m) const;
  [[nodiscard]] at::Tensor q(const PowerSgdPlan::Matrix& m) const;
  /// The matrix itself: of gradients, or of gradients plus error.
  [[nodiscard]] at::Tensor input(const PowerSgdPlan::Matrix& m) const;
  void choose_q();

  Communicator& communicator_;
  const PowerSgdPlan plan_;
  const at::ScalarType type_;
  const std::optional<at::ScalarType> wire_;
  const CommStateOption options_;
  at::Generator generator_;       // same draws on every rank
  std::int64_t iteration_ = 0;
  bool fresh_q_ = true;           // none of the step before can be used
  bool compressed_ = false;       // this pass
  at::Tensor gradients_;          // [numel]
  at::Tensor square_;             // batched: gradients, filled up
  at::Tensor error_;              // with error feedback: the input while a pass runs, then the error
  at::Tensor p_flat_, q_flat_;
  std::unique_ptr<BucketReduction> whole_, p_reduction_, q_reduction_;
};

}  // namespace troupe::detail

#pragma once

#include <troupe/sharding_options.hpp>

#include <cstdint>
#include <string>

namespace troupe {

/// What sharding arithmetic needs to know about a model. Counts are elements.
struct ModelSize {
  std::int64_t num_params = 0;    ///< trainable ones
  std::int64_t num_frozen = 0;    ///< others: no gradient, no optimizer state
  std::int64_t largest_unit = 0;  ///< parameters of the largest unit but the root
  std::int64_t root_unit = 0;     ///< parameters in no other unit: gathered while the step runs
  std::int64_t num_persistent = 0;  ///< parameters that stay gathered (persistence_threshold)
  int num_units = 1;                ///< the root counted
};

/// How the state of one parameter is held; shares and gathering follow from the ShardingOptions.
struct StateTypes {
  DType model_dtype = DType::F32;  ///< parameters as the model has them; with param_dtype, the fp32 masters' source
  DType grad_dtype = DType::F32;   ///< of accumulated gradients; BF16/F16 only with param_dtype of that type
  int num_states = 2;              ///< fp32 numbers of optimizer state a parameter: AdamW 2, SGD with momentum and Lion 1
};

/// Bytes of one rank.
struct MemoryEstimate {
  std::int64_t params = 0;     ///< resident: whole or a share, and fp32 masters where they are apart
  std::int64_t grads = 0;
  std::int64_t optimizer = 0;
  std::int64_t gathered = 0;   ///< most that is gathered or under reduction at one time (ShardParameters), or buckets
  std::int64_t host = 0;       ///< offloaded to host memory or disk
  std::string formula;         ///< of the resident bytes: "8Ψ + 8Ψ/N"
  [[nodiscard]] std::int64_t resident() const noexcept { return params + grads + optimizer; }
  [[nodiscard]] std::int64_t peak() const noexcept { return resident() + gathered; }
};

/// ZeRO arithmetic (Rajbhandari et al., arXiv 1910.02054) without activations. In fp32 with AdamW: Replicate 16Ψ,
/// ShardOptimizer 8Ψ + 8Ψ/N, ShardGradients 4Ψ + 12Ψ/N, ShardParameters 16Ψ/N and what is gathered. With a 16-bit
/// param_dtype and fp32 masters, ShardOptimizer holds 2Ψ + gradients + 12Ψ/N, ShardGradients 2Ψ + gradients/N + 12Ψ/N;
/// ShardParameters keeps its share in fp32 and casts while gathering, so it stays at 16Ψ/N.
/// Gathered, with parameters of b bytes and gradients of r bytes reduced: b·(root and persistent parameters), and the
/// larger of what the largest other unit ψ needs in backward (itself, the one that is prefetched, its gradients, their
/// reduction: (3b + r)ψ + rψ/N) and what the root's gradients need ((b + r)·root + r·root/N). Shares are rounded up.
/// Throws Failure{InvalidArgument} when `ranks` < 1 or shard_group_size does not divide it.
[[nodiscard]] MemoryEstimate estimate_memory(const ModelSize& model, const ShardingOptions& sharding, int ranks,
                                             const StateTypes& types = {});

/// "replicate", "zero1", "zero2", "zero3".
[[nodiscard]] const char* short_name(ShardingStrategy strategy) noexcept;

}  // namespace troupe

#pragma once

#include <cstdint>

namespace troupe {

/// How the samples of an epoch are dealt out to ranks in batches: Accelerate 1.15's
/// BatchSamplerShard as arithmetic on positions. A position counts samples in the epoch's order,
/// whatever that order is; `num_samples` and beyond wrap to the epoch's beginning (that is how
/// `even_batches` fills the last batches up).
struct BatchSharding {
  std::int64_t num_samples = 0;
  std::int64_t batch_size = 1;  ///< of one rank; with split_batches of all ranks together
  bool drop_last = false;
  int rank = 0;
  int world_size = 1;
  bool split_batches = false;
  bool even_batches = true;  ///< no effect with one rank, as in Accelerate
  std::int64_t first = 0;    ///< positions before it are not dealt out: an epoch that others began
};

/// Positions first, first + 1, … first + count - 1, each taken modulo num_samples.
struct PositionRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  bool operator==(const PositionRange&) const = default;
};

/// Throws Failure{InvalidArgument} naming the field, its value and what it may be.
void validate(const BatchSharding& sharding);

/// Batches of one epoch on this rank. Without even_batches and drop_last the ranks may differ by
/// one.
[[nodiscard]] std::int64_t num_batches(const BatchSharding& sharding) noexcept;

/// Batch number `index` of this rank, 0 <= index < num_batches.
[[nodiscard]] PositionRange batch_at(const BatchSharding& sharding, std::int64_t index) noexcept;

/// Samples in a full batch of all ranks together.
[[nodiscard]] std::int64_t total_batch_size(const BatchSharding& sharding) noexcept;

/// Positions, from the epoch's beginning, that all ranks together have taken with their first
/// `num_batches` batches each; at most num_samples.
[[nodiscard]] std::int64_t samples_taken(const BatchSharding& sharding, std::int64_t num_batches) noexcept;

/// Real samples in an epoch's last, incomplete global batch; 0 when all are full; -1 (unknown) with
/// drop_last.
[[nodiscard]] std::int64_t remainder(const BatchSharding& sharding) noexcept;

}  // namespace troupe

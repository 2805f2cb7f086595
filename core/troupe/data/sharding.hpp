#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace troupe {

using Indices = std::vector<std::size_t>;

/// How one epoch's samples are dealt into batches, and the batches to ranks.
struct ShardingRule {
  std::int64_t batch_size = 1;  ///< of one rank; of all together with split_batches
  bool drop_last = false;
  bool split_batches = false;
  bool even_batches = true;
  int rank = 0;
  int world_size = 1;

  /// Samples of one step over all ranks.
  [[nodiscard]] std::int64_t total_batch_size() const noexcept { return split_batches ? batch_size : batch_size * world_size; }
};

/// Throws Failure{InvalidArgument} naming the field: a batch size below 1, or one that split_batches cannot divide.
void validate(const ShardingRule& rule);

/// The batches of one rank, as Accelerate 1.15 deals them. Without split_batches batch i goes to rank i % N; with it every
/// batch is cut into N slices. even_batches fills the last step up with samples from the start of the epoch, so that all
/// ranks get equally many equal batches; drop_last leaves that step out. One rank alone gets the batches as they are.
/// @param order the epoch's sample indices in order.
[[nodiscard]] std::vector<Indices> shard_batches(const Indices& order, const ShardingRule& rule);

/// Rows of the last global batch that are real; 0: all of them; -1: unknown, as nothing is left over (drop_last).
[[nodiscard]] std::int64_t remainder_at_end(std::size_t num_samples, const ShardingRule& rule);

/// A rank's samples as torch.utils.data.DistributedSampler (and so Ray Train) deals them: every N-th one, after the order was
/// repeated from its start, or cut, to a multiple of N.
[[nodiscard]] Indices distributed_samples(const Indices& order, int rank, int world_size, bool drop_last);

}  // namespace troupe

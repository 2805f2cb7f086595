#pragma once

#include <troupe/accelerator.hpp>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace troupe::detail {

/// How one bucket of gradients becomes its average over ranks. One object per bucket, which may keep state.
///
/// Each pass calls start, proceed and finish once, in this order and, over buckets, in the same order on every rank:
/// all starts, then all proceeds, then all finishes. Collectives may be called in start and proceed. Results are
/// bitwise equal on all ranks. Errors: those of the communicator, thrown by proceed and finish.
class BucketReduction {
 public:
  virtual ~BucketReduction() = default;
  /// @param gradients any shape, contiguous, all elements of the bucket; untouched by others until finish returns.
  virtual void start(const at::Tensor& gradients) = 0;
  /// Moves what is under way without blocking; true when nothing is left to wait for.
  virtual bool poll() = 0;
  virtual void proceed() {}
  /// Afterwards `gradients` holds the average.
  virtual void finish() = 0;
};

/// A parameter's place in its bucket.
struct Segment {
  std::int64_t offset = 0;
  std::int64_t numel = 0;
  std::int64_t rows = 0;  ///< size of its dim 0
  int dims = 0;
};

struct BucketShape {
  std::vector<Segment> segments;
  std::int64_t numel = 0;  ///< with gaps between segments
  at::ScalarType type = at::kFloat;
};

/// One all-reduce where the gradients lie, or of a copy rounded to `wire`.
[[nodiscard]] std::unique_ptr<BucketReduction> make_all_reduce(Communicator& communicator, std::optional<at::ScalarType> wire);
/// What `options` asks for. 16-bit buckets are sent as they are under every hook.
/// @param index the bucket's number, the same on every rank.
[[nodiscard]] std::unique_ptr<BucketReduction> make_reduction(Communicator& communicator, const DistributedDataParallelKwargs& options,
                                                              BucketShape shape, std::size_t index);
/// Throws Failure{InvalidConfig} naming the field that is out of range or would have no effect.
void check_comm_hook(const DistributedDataParallelKwargs& options);

}  // namespace troupe::detail

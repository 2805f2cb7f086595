#pragma once

#include "bucket_reduction.hpp"

#include <troupe/accelerator.hpp>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe::detail {

class GradientMemory;

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// A run of parameters whose gradients are reduced by one collective.
struct BucketPlan {
  std::vector<std::size_t> params;  ///< indices, in order of expected readiness
  bool in_place = false;            ///< one large gradient, reduced where autograd put it
};

/// Buckets in launch order: parameters from last to first, since backward finishes them about so. Small ones share a
/// bucket of their type until `cap_bytes` (the first closes at 1 MiB, to start early); with `in_place_bytes` > 0 a
/// gradient of at least that size is a bucket of its own and is not copied.
[[nodiscard]] std::vector<BucketPlan> plan_buckets(const NamedTensors& params, std::size_t cap_bytes, std::size_t in_place_bytes);

/// One backward's part in the engine.
struct Pass {
  int buffer_root = 0;       ///< the rank whose buffers everyone gets
  bool hold_back = false;    ///< buckets start in finish(): several engines then start theirs in one order on all ranks
  bool may_be_idle = false;  ///< no gradient at all means that the loss is another model's, not an error
};

/// Replicated training of one module over one communicator.
///
/// Autograd leaves a parameter's first gradient without a copy ("steals" it). That is kept: small gradients are then
/// copied into their bucket, which costs one read and one write, while gradients that are always views of a bucket
/// must be zeroed (a write) and added to (two reads and a write). Large ones are allocated where the
/// communicator's peers reach them (GradientMemory) and reduced where they lie. Afterwards `param.grad` is the average, a view of the bucket or the
/// tensor that autograd made.
///
/// Buckets are launched in plan order on every rank, whatever the order in which gradients come.
/// Threads: the rank's own.
class DdpEngine {
 public:
  /// Collective: checks that all ranks have the same parameters, and gives everyone rank 0's.
  /// Throws Failure{CollectiveMismatch} naming parameter and rank.
  DdpEngine(Communicator& communicator, NamedTensors params, NamedTensors buffers, const DistributedDataParallelKwargs& options);
  ~DdpEngine();
  DdpEngine(const DdpEngine&) = delete;
  DdpEngine& operator=(const DdpEngine&) = delete;

  /// Gradients of the backward that follows are reduced as they become ready.
  void begin(const Pass& pass = {});
  /// Launches what is left and waits. Throws Failure{InvalidArgument} naming parameters without a gradient, unless
  /// find_unused_parameters; Failure with the communicator's reason when a peer did not come.
  void finish();
  /// Takes part in the others' begin() and finish() with gradients of zero. This rank's gradients are lost, as far as
  /// they lie in buckets; its parameters stay.
  void shadow(const Pass& pass);
  /// Forgets a backward that threw.
  void cancel() noexcept;

 private:
  struct Hook;
  struct Param {
    std::string name;
    at::Tensor tensor;
    std::size_t bucket = 0;
    at::Tensor view;      // of the bucket's buffer, shaped as the parameter
    bool ready = false;
    bool zeroed = false;  // had no gradient on this rank
  };
  struct Bucket {
    BucketPlan plan;
    at::Tensor flat;  // in_place: the gradient while it is under way
    std::size_t num_ready = 0;
    std::unique_ptr<BucketReduction> reduction;  // last: waits while `flat` lives
  };

  void add_bucket(BucketPlan plan);
  void on_gradient(std::size_t param);
  void mark_ready(std::size_t param);
  void launch_ready();
  void complete_unused();
  /// For each parameter: did any rank have a gradient?
  [[nodiscard]] std::vector<std::uint8_t> agree_on_unused();
  void drop_globally_unused();
  void reduce_buckets();
  [[nodiscard]] bool idle() const;
  void start_buffers();
  void finish_buffers();

  Communicator& communicator_;
  DistributedDataParallelKwargs options_;
  std::unique_ptr<GradientMemory> gradient_memory_;  // of large gradients
  std::vector<Param> params_;
  std::vector<Bucket> buckets_;
  std::vector<at::Tensor> buffers_;
  at::Tensor buffer_bytes_;  // all module buffers, one after another
  Work buffer_work_;
  std::size_t next_ = 0;  // first bucket not launched
  std::size_t done_ = 0;  // first launched bucket that was not seen finished
  bool active_ = false;
  Pass pass_;
  std::size_t num_gradients_ = 0;  // of this pass
  bool local_ = false;             // gradients came that no pass has reduced
};

/// Checks that all ranks have the same parameters and gives every rank those, and the buffers, of rank 0. Throws
/// Failure{CollectiveMismatch} naming parameter and rank.
void make_equal_on_all_ranks(Communicator& communicator, const NamedTensors& params, const NamedTensors& buffers);
/// Every rank's bytes of any length, in rank order.
[[nodiscard]] std::vector<std::string> all_gather_bytes(Communicator& communicator, const std::string& bytes);
/// The elements of `root` in every rank's tensors, 25 MiB at a time.
void broadcast_tensors(Communicator& communicator, const std::vector<at::Tensor>& tensors, int root);
inline void broadcast_from_zero(Communicator& communicator, const std::vector<at::Tensor>& tensors) {
  broadcast_tensors(communicator, tensors, 0);
}

}  // namespace troupe::detail

#pragma once

#include <troupe/accelerator.hpp>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe::detail {

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

/// Replicated training of one module over one communicator.
///
/// Autograd leaves a parameter's first gradient without a copy ("steals" it). That is kept: small gradients are then
/// copied into their bucket, which costs one read and one write, while gradients that are always views of a bucket
/// must be zeroed (a write) and added to (two reads and a write). Large ones are reduced where they lie when the
/// communicator's peers can reach any memory. Afterwards `param.grad` is the average, a view of the bucket or the
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
  void begin();
  /// Launches what is left and waits. Throws Failure{InvalidArgument} naming parameters without a gradient, unless
  /// find_unused_parameters; Failure with the communicator's reason when a peer did not come.
  void finish();
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
    Work work;
  };

  void add_bucket(BucketPlan plan);
  void on_gradient(std::size_t param);
  void mark_ready(std::size_t param);
  void launch_ready();
  void complete_unused();
  void drop_globally_unused();
  void start_buffers();
  void finish_buffers();

  Communicator& communicator_;
  DistributedDataParallelKwargs options_;
  std::vector<Param> params_;
  std::vector<Bucket> buckets_;
  std::vector<at::Tensor> buffers_;
  at::Tensor buffer_bytes_;  // all module buffers, one after another
  Work buffer_work_;
  std::size_t next_ = 0;  // first bucket not launched
  std::size_t done_ = 0;  // first launched bucket that was not seen finished
  bool active_ = false;
};

/// Checks that all ranks have the same parameters and gives every rank those, and the buffers, of rank 0. Throws
/// Failure{CollectiveMismatch} naming parameter and rank.
void make_equal_on_all_ranks(Communicator& communicator, const NamedTensors& params, const NamedTensors& buffers);
/// Every rank's bytes of any length, in rank order.
[[nodiscard]] std::vector<std::string> all_gather_bytes(Communicator& communicator, const std::string& bytes);
/// Rank 0's elements in every rank's tensors, 25 MiB at a time.
void broadcast_from_zero(Communicator& communicator, const std::vector<at::Tensor>& tensors);

}  // namespace troupe::detail

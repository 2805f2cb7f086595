#pragma once

#include "deferred_values.hpp"
#include "in_flight.hpp"
#include "shard_file.hpp"
#include "shard_plan.hpp"

#include <troupe/communicator.hpp>
#include <troupe/memory_account.hpp>
#include <troupe/sharding_options.hpp>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace troupe::detail {

/// Throws Failure{InvalidConfig} for what is none of F32, BF16 and F16.
[[nodiscard]] at::ScalarType scalar_type_of(DType type);

/// Buffers that peers can reach, used again and again: fresh memory would cost a page fault for every 4 KiB of every step.
///
/// On a device with streams a buffer returns in the order of the compute stream: who drops the last handle has let compute
/// wait for every other stream that used it, and whoever uses it next comes after compute (see Communicator).
///
/// Threads: any; buffers may outlive the pool.
class BufferPool {
 public:
  BufferPool(Communicator& communicator, MemoryAccount account) : communicator_(communicator), account_(std::move(account)) {}
  /// At least `bytes`, contents undefined; free again with the last copy of the handle.
  [[nodiscard]] std::shared_ptr<void> take(std::size_t bytes);

 private:
  struct Slot {
    std::shared_ptr<void> memory;
    std::size_t bytes = 0;
    MemoryAccount::Charge charge;  // while in use
  };
  struct Slots {
    std::mutex mutex;
    std::vector<Slot> free;
  };
  Communicator& communicator_;
  MemoryAccount account_;
  std::shared_ptr<Slots> slots_ = std::make_shared<Slots>();
};

/// What the groups of one engine share.
struct ShardWorld {
  Communicator& gather;      ///< parameters travel here …
  Communicator& reduce;      ///< … and gradients here: two orders of calls that need not agree
  Communicator* replicas;    ///< ranks that hold the same shard, in hybrid sharding; else nullptr
  const ShardingOptions& options;
  MemoryAccount account;
  BufferPool pool;
  DeviceRuntime& device;
  at::Device torch_device;      ///< `device`, as LibTorch says it
  InFlight in_flight;
  std::unique_ptr<Stream> copies;  ///< to and from host memory; nullptr: nothing is offloaded from the device
  std::shared_ptr<ShardFile> params_file = nullptr;   ///< offload_params to disk; else nullptr
  std::shared_ptr<ShardFile> masters_file = nullptr;  ///< offload_optimizer to disk: masters beside 16-bit parameters
  const DeferredValues* deferred = nullptr;  ///< while groups are made: values of parameters without memory

  /// Waits for all that streams still do with groups' memory.
  void quiesce() noexcept {
    in_flight.drop();
    try {
      if (copies) copies->synchronize();
    } catch (...) {  // a broken device does nothing any more
    }
  }
};

/// Parameters of one element type in one flat buffer of N equal parts, one a rank of the shard group:
///
///   | p0 ........ | p1 .. | p2 ............. | pad |      each parameter begins at a multiple of 16 elements
///   | rank 0        | rank 1        | rank 2       |      rank r owns [r*S, (r+1)*S), whatever parameters lie there
///
/// The owner keeps the master copy (fp32 for trained parameters) and the reduced gradient of its part. A parameter's
/// "piece" is the part of it that this rank owns: a 1-D view of the master copy, perhaps empty. Optimizers update pieces.
///
/// The whole buffer keeps one StorageImpl for life while its bytes come and go, so that views which autograd saved
/// become valid again when the bytes are back. While they are gone, parameters have shape [0].
///
/// On disk: with offload_params the masters of freed groups, which are read before each gather; with offload_optimizer masters that
/// differ in type from what is gathered, of which a copy in that type stays in memory. Pieces then have memory only inside
/// `Optimizer::step` and `with_masters`.
///
/// Threads: the rank's own.
class FlatGroup {
 public:
  /// Takes the values of `params` (every rank has the same) and makes the module's parameters views of the flat buffer.
  FlatGroup(ShardWorld& world, GroupPlan plan, const NamedTensors& params);
  ~FlatGroup();
  FlatGroup(const FlatGroup&) = delete;
  FlatGroup& operator=(const FlatGroup&) = delete;

  [[nodiscard]] const GroupPlan& plan() const noexcept { return plan_; }

  // Parameters. Freed groups: gather before use, release after it. Whole groups: gather after the owner's update.
  void start_gather();
  void finish_gather();
  void release();
  /// The masters have changed.
  void masters_changed() noexcept { stale_ = true; }
  /// Where the masters are between uses; nullptr: in memory.
  [[nodiscard]] const std::shared_ptr<DiskShard>& disk() const noexcept { return disk_; }
  [[nodiscard]] bool whole() const noexcept { return state_ == State::Whole; }

  // Gradients of one backward.
  void begin_backward();
  /// Takes the gradient of parameter `index` (of the plan's list) from the module; true when it was the last one.
  bool take_gradient(std::size_t index);
  [[nodiscard]] bool complete() const noexcept { return num_taken_ == params_.size(); }
  /// ShardOptimizer with 16-bit gradients: adds the gradient to an fp32 sum that waits for the window's end.
  void keep_gradient(std::size_t index);
  /// Parameters that got no gradient count as zero. Posts the reduction to the owners.
  void start_reduce();
  void finish_reduce();
  /// Reduced gradients are with their masters, in host memory, when it returns. Without offload they are already.
  void land();
  [[nodiscard]] bool reducing() const noexcept { return reducing_; }
  /// Parameters that had a gradient on this rank since the window began.
  [[nodiscard]] bool used(std::size_t index) const { return params_[index].used; }
  /// Hands the reduced gradients to the pieces whose parameter any rank used.
  void show_gradients(const std::vector<bool>& used);
  void forget_backward() noexcept;

  /// What keep_gradient added up; undefined when there is nothing.
  [[nodiscard]] const at::Tensor& kept() const noexcept { return kept_; }

  /// A parameter's shape when it is whole.
  [[nodiscard]] const std::vector<std::int64_t>& sizes(std::size_t index) const { return params_[index].sizes; }
  [[nodiscard]] const at::Tensor& piece(std::size_t index) const { return params_[index].piece; }
  /// Where the piece begins in the parameter, in elements.
  [[nodiscard]] std::int64_t piece_begin(std::size_t index) const;
  /// The whole parameter out of everybody's `pieces` (one a parameter of the plan; undefined: zeros), in fp32 or the
  /// masters' type, on every rank of the group. Collective.
  [[nodiscard]] std::vector<at::Tensor> assemble(const std::vector<at::Tensor>& pieces);

 private:
  enum class State { Released, Reading, Gathering, Whole };
  struct Param {
    std::string name;
    at::Tensor tensor;  // the module's
    std::int64_t offset = 0;
    std::int64_t numel = 0;
    std::vector<std::int64_t> sizes;
    at::Tensor view;   // of full_, as the parameter
    at::Tensor piece;  // of master_
    std::int64_t piece_offset = 0;  // in master_
    bool taken = false;
    bool used = false;
  };

  void lay_out(const NamedTensors& params);
  void make_masters();
  void charge_resident();
  void post_gather();
  void fill_masters();
  void attach(std::shared_ptr<void> memory);
  void detach();
  void show_parameters();
  void take_buffer();
  [[nodiscard]] at::Tensor pooled(std::int64_t numel, at::ScalarType type);
  void zero(const at::Tensor& flat, std::int64_t begin, std::int64_t end);
  void copy_into(const at::Tensor& to, const at::Tensor& from);
  void upload_masters(const at::Tensor& part);
  void add_incoming(const at::Tensor& incoming);

  ShardWorld& world_;
  GroupPlan plan_;
  std::vector<Param> params_;
  std::int64_t shard_numel_ = 0;
  at::ScalarType master_type_, compute_type_;
  bool offloaded_ = false; // masters and reduced gradients in host memory, where the optimizer is
  at::Tensor master_;      // [S]
  std::shared_ptr<DiskShard> disk_;  // holds master_
  at::Tensor full_;        // [N*S]
  at::Tensor empty_;
  State state_ = State::Released;
  bool stale_ = true;      // full_ differs from the masters
  Work gather_work_;

  at::Tensor grads_;       // [N*S] of this backward
  at::Tensor kept_;        // [N*S] fp32, over a window
  at::Tensor grad_shard_;  // [S] fp32
  at::Tensor incoming_;    // [S] added to grad_shard_ when it arrived
  bool adds_ = false;      // to gradients of earlier batches
  at::Tensor landing_;     // [S] of the host, what incoming_ is copied to
  std::shared_ptr<const Event> landed_;
  std::size_t num_taken_ = 0;
  bool reducing_ = false;
  Work reduce_work_;
  MemoryAccount::Charge parameters_charge_, masters_charge_, gradients_charge_;
};

enum class Masters : bool { Read, Changed };

/// Calls `use()` with a group's masters in memory, wherever they are.
template <class Use>
void with_masters(const FlatGroup& group, Masters how, const Use& use) {
  if (group.disk()) group.disk()->enter();
  use();
  if (group.disk()) group.disk()->leave(how == Masters::Changed);
}

}  // namespace troupe::detail

#pragma once

#include "flat_group.hpp"
#include "shard_plan.hpp"

#include <troupe/communicator.hpp>
#include <troupe/memory_estimate.hpp>
#include <troupe/sharding_options.hpp>

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace troupe::detail {

class OffloadStream;

/// Where a rank's tensors lie, and who combines them there.
struct RankDevice {
  DeviceRuntime* runtime = &cpu_runtime();
  Communicator* communicator = nullptr;  ///< nullptr: the one for host memory
};

/// Sharded training of one module: ZeRO-1/2/3, FSDP and hybrid sharding (Rajbhandari et al., arXiv 1910.02054; Zhao et
/// al., arXiv 2304.11277), decided by ShardingOptions.
///
/// Before a unit's forward and before its backward its parameters are gathered, with the unit that comes next; after
/// them they are freed. Gradients go to their owners in the order in which backward completes units, the same on all
/// ranks, each as one reduce-scatter. Optimizers update pieces (see FlatGroup).
///
/// Threads: the rank's own. Errors: Failure naming parameter or peer; after one the engine must not be used again.
class ShardEngine {
 public:
  /// Collective: checks that all ranks have the same parameters, gives everyone rank 0's, and shards them.
  /// @param communicator for host memory: a few bytes a step.
  ShardEngine(Communicator& communicator, std::shared_ptr<torch::nn::Module> module, const ShardingOptions& options, MemoryAccount account = {},
              const RankDevice& device = {});
  ~ShardEngine();
  ShardEngine(const ShardEngine&) = delete;
  ShardEngine& operator=(const ShardEngine&) = delete;

  /// Gradients of the backward that follows are taken. `sync`: it ends the accumulation window.
  void begin(bool sync);
  /// Everything is reduced when it returns.
  void finish();
  /// Forgets a backward that threw.
  void cancel() noexcept;

  /// This rank's part of a parameter of the module, for optimizers; undefined when it is not sharded.
  [[nodiscard]] at::Tensor piece_of(const at::Tensor& parameter) const;
  /// Where its piece is between updates; nullptr: in memory.
  [[nodiscard]] std::shared_ptr<Residence> residence_of(const at::Tensor& parameter) const;
  /// The optimizer has changed pieces.
  void after_step();
  /// Parameters that this engine keeps whole are those of the last update when it returns.
  void settle();
  /// Gradients of this rank's pieces, and sums of an open window that wait for its end.
  [[nodiscard]] std::vector<at::Tensor> gradients() const;
  /// A rank's value added up over the ranks whose pieces make a whole. Collective.
  [[nodiscard]] double sum_over_group(double value);

  /// Every parameter whole, in the masters' type, under its name, one after another: visit(name, tensor). Collective.
  template <class Visit>
  void for_each_parameter(Visit visit, bool trained_only = false) {
    for (const auto& group : groups_) {
      if (trained_only && !group->plan().trained) continue;
      std::vector<at::Tensor> pieces;
      const auto& indices = group->plan().params;
      for (std::size_t i = 0; i < indices.size(); ++i) pieces.push_back(group->piece(i));
      const auto whole = group->assemble(pieces);
      for (std::size_t i = 0; i < indices.size(); ++i) visit(plan_.params[indices[i]].first, whole[i]);
    }
  }
  /// The name under which a sharded parameter is known; "": it is not sharded.
  [[nodiscard]] std::string first_name_of(const at::Tensor& parameter) const;
  /// What a rank holds of a sharded parameter: `values` [n] are elements `begin` … of it, and may be written to; after_step()
  /// then makes them seen.
  struct Piece {
    at::Tensor values;
    std::int64_t begin = 0;
    std::vector<std::int64_t> sizes;   ///< of the whole
    std::shared_ptr<DiskShard> disk;   ///< where `values` are between uses; nullptr: in memory
  };
  [[nodiscard]] Piece piece(const at::Tensor& parameter) const;
  /// Ranks that hold the same pieces, and which of them this is.
  [[nodiscard]] int num_replicas() const { return replica_group_ ? replica_group_->size() : 1; }
  [[nodiscard]] int replica() const { return replica_group_ ? replica_group_->rank() : 0; }

  [[nodiscard]] const ShardPlan& plan() const noexcept { return plan_; }
  [[nodiscard]] const ShardingOptions& options() const noexcept { return options_; }
  /// For `estimate_memory`.
  [[nodiscard]] ModelSize size() const;
  /// What this rank sent so far: of parameters, of gradients, and of gradients between replicas.
  struct Sent {
    std::uint64_t parameters = 0, gradients = 0, replicas = 0;
  };
  [[nodiscard]] Sent sent() const;

 private:
  struct UnitState;
  struct Hook;
  struct Place {
    FlatGroup* group = nullptr;
    std::size_t index = 0;
  };

  void make_world(const RankDevice& device, const MemoryAccount& account);
  void make_groups();
  void set_offload_stream(const std::shared_ptr<OffloadStream>& stream);
  void install_hooks();
  void convert_buffers();
  void on_gradient(Place place);
  void launch_ready();
  void launch(FlatGroup& group);
  void agree_on_used();
  void order_reductions();
  [[nodiscard]] const Place* place_of(const at::Tensor& parameter) const;

  void pre_forward(UnitState& unit);
  void post_forward(UnitState& unit);
  void pre_backward(UnitState& unit);
  void release_finished(const UnitState* entered);

  Communicator& communicator_;
  std::shared_ptr<torch::nn::Module> module_;
  ShardingOptions options_;
  std::unique_ptr<Communicator> shard_group_, reduce_group_, replica_group_;
  std::unique_ptr<Communicator> host_group_;  // the shard group's for host memory, where reduce_group_ is not
  std::unique_ptr<ShardWorld> world_;
  ShardPlan plan_;
  std::vector<std::unique_ptr<FlatGroup>> groups_;
  std::vector<std::shared_ptr<UnitState>> units_;
  std::unordered_map<const void*, Place> places_;  // by TensorImpl

  std::vector<UnitState*> forwarded_;  // units of this step, in order of their first forward
  UnitState* last_entered_ = nullptr;  // by a forward
  std::vector<UnitState*> in_backward_;
  std::vector<FlatGroup*> order_;      // reductions of this backward
  std::size_t next_ = 0;               // first of order_ that is not launched
  std::size_t done_ = 0;               // first of order_ that is not finished
  bool active_ = false;
  bool sync_ = true;
};

}  // namespace troupe::detail

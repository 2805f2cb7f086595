#pragma once

#include <troupe/sharding_options.hpp>

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

/// Parameters that share settings. Negative: the optimizer's own value.
struct ParamGroup {
  std::vector<at::Tensor> params;
  double lr = -1;
  double weight_decay = -1;
  double beta1 = -1;     ///< Adam, AdamW, Lion
  double beta2 = -1;     ///< Adam, AdamW, Lion
  double momentum = -1;  ///< SGD
};

/// What an optimizer's `step` and `zero_grad` may do now; whoever prepared it sets this.
struct StepGate {
  bool sync = true;   ///< an accumulation window ends here: false holds back both
  bool skip = false;  ///< the gradients overflowed on some rank: `step` and the scheduler do nothing, `zero_grad` acts
};

/// Optimizer state by parameter: of its index, "exp_avg.3", or of its name, "exp_avg.encoder.weight".
enum class StateKeys : std::uint8_t { Index, Name };

/// How state on disk is read and written: by io_uring, or by a thread that calls pread and pwrite.
enum class DiskIo : std::uint8_t {
  Any,  ///< io_uring where the build and the kernel have it
  IoUring,
  Threads
};

namespace detail {
class StateStore;

/// Parameters whose memory is there only while something works on them.
///
/// Threads: the rank's own.
class Residence {
 public:
  virtual ~Residence() = default;
  /// Asks for the memory; it may come later.
  virtual void start_enter() = 0;
  /// The memory is there when it returns, and until `leave`.
  virtual void enter() = 0;
  virtual void leave(bool changed) = 0;
};

/// Consecutive elements in memory: parameters, gradients and the slots of state, all of one dtype.
struct Elements {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  std::int64_t count = 0;
  void* param = nullptr;
  const void* grad = nullptr;
  std::array<void*, 2> state{};  ///< nullptr: the optimizer has no such slot

  /// `length` elements from the `first` on.
  [[nodiscard]] Elements part(std::int64_t first, std::int64_t length) const;
};
}  // namespace detail

/// Base of optimizers: parameter groups, a learning rate a scheduler may set, and state by parameter.
///
/// A prepared one acts only on the last step of an accumulation window: before that, `step` and `zero_grad` do
/// nothing, as in Accelerate, so the loop reads the same with and without accumulation.
///
/// Parameters are dense fp32 (or fp64, bf16, fp16) tensors. In host memory an update is one pass over it, and the same bit for
/// bit however the parameters are cut into pieces and wherever their state lies; on a GPU it is LibTorch's operations, one
/// after another (not run on one yet), with the state beside the parameters.
///
/// Threads: the rank's own.
class Optimizer {
 public:
  using State = std::vector<std::pair<std::string, at::Tensor>>;

  virtual ~Optimizer();
  /// One update of every parameter that has a gradient. Throws Failure{Unsupported} on a sparse gradient or another dtype.
  void step() {
    if (!steps()) return;
    update();
    if (after_step_) after_step_();
  }
  /// Forgets the gradients, or zeroes them in place: forgetting is faster, the next backward need not add.
  void zero_grad(bool set_to_none = true);
  /// False while an accumulation window is open.
  [[nodiscard]] bool acts() const noexcept { return !gate_ || gate_->sync; }
  /// Whether `step` would update: it acts and its gradients are good.
  [[nodiscard]] bool steps() const noexcept { return acts() && !(gate_ && gate_->skip); }
  /// `Accelerator::prepare` calls this; nullptr takes the gate away.
  void set_gate(std::shared_ptr<const StepGate> gate) { gate_ = std::move(gate); }
  /// Called at the end of every `step` that updated; `Accelerator::prepare` uses it to send updated shards.
  void set_after_step(std::function<void()> after_step) { after_step_ = std::move(after_step); }

  /// Trains `pieces` (one list a group, one tensor a parameter, in the same order) instead of the parameters given: what
  /// this rank owns of each, 1-D leaves that may have no element. From here on `step` reads and `zero_grad` resets the
  /// pieces' gradients; state has the pieces' shapes. Pieces that lie next to each other in one buffer, with their gradients,
  /// are updated as one. Throws Failure{InvalidArgument} on other counts, and once there is state.
  void repoint(std::vector<std::vector<at::Tensor>> pieces);
  /// The parameters as constructed, over all groups; `handles()[i]` became piece i.
  [[nodiscard]] const std::vector<at::Tensor>& handles() const noexcept { return handles_; }
  /// Where the pieces are between updates, one entry a parameter over all groups; nullptr: in memory. `step` enters one after the
  /// other, while it updates the one before. Throws Failure{InvalidArgument} on another count.
  void set_residences(std::vector<std::shared_ptr<detail::Residence>> residences);
  /// One name a parameter, over all groups, for StateKeys::Name. Throws Failure{InvalidArgument} on another count or a repeated name.
  void set_names(std::vector<std::string> names);

  /// Keeps state away from the device that trains: after `repoint`, before the first step and load_state.
  /// Host: state and updates are the host's; for parameters in host memory that is what happens anyway.
  /// Disk: state lies in an unlinked file of `rank` in `offload.path`, whose room is taken here; `step` reads, updates and
  /// writes it chunk by chunk, several under way at once, in num_buffers buffers that together are all the memory it takes.
  /// Throws Failure: FileNotFound, StorageUnavailable (full, or the device failed; also from `step`), Unsupported
  /// (IoUring that is not there, parameters on a GPU), InvalidArgument (there is state).
  void set_offload(const Offload& offload, int rank, DiskIo io = DiskIo::Any);

  [[nodiscard]] const std::vector<ParamGroup>& groups() const noexcept { return groups_; }
  /// Learning rates as constructed, one a group: what schedulers scale.
  [[nodiscard]] const std::vector<double>& base_lrs() const noexcept { return base_lrs_; }
  void set_lr(std::size_t group, double lr);
  [[nodiscard]] double lr(std::size_t group = 0) const;

  /// Named state tensors ("exp_avg.<i>", "step.<i>", i counts parameters over all groups) for checkpoints: views of the state,
  /// or copies where it lies on disk. A parameter that was never updated has none.
  [[nodiscard]] State state(StateKeys keys = StateKeys::Index) const;
  /// Copies. Throws Failure{InvalidArgument} naming a tensor that is missing, unknown or of another shape.
  void load_state(const State& state, StateKeys keys = StateKeys::Index);

  [[nodiscard]] bool keeps_state_on_disk() const noexcept;

  // State without copies, for checkpoints. Parameters count over all groups, slots as in slot_names().
  [[nodiscard]] std::vector<std::string> slot_names() const;
  /// Of set_names; empty before it.
  [[nodiscard]] const std::vector<std::string>& names() const noexcept { return names_; }
  /// What `step` updates: the parameter itself, or this rank's piece.
  [[nodiscard]] const at::Tensor& trained(std::size_t parameter) const;
  /// 0: the parameter has no state.
  [[nodiscard]] std::int64_t num_updates(std::size_t parameter) const { return entries_.at(parameter).step; }
  /// A slot of a parameter that has state, shaped as what is trained: a view. Undefined where state lies on disk.
  [[nodiscard]] at::Tensor state_view(std::size_t slot, std::size_t parameter) const;
  /// The same where state lies on disk: its bytes in order of memory, mapped, and readable until the next step or while
  /// `mapping` is kept. One `mapping`, null at first, serves for all calls.
  [[nodiscard]] std::vector<std::span<const std::byte>> state_on_disk(std::size_t slot, std::size_t parameter,
                                                                      std::shared_ptr<void>& mapping) const;
  /// Forgets all state; afterwards each parameter has made as many updates as given, and has initial values in its slots.
  void reset_state(const std::vector<std::int64_t>& num_updates);
  /// Sets a slot, in memory or on disk. @param values of the shape of what is trained, of any dtype.
  void write_state(std::size_t slot, std::size_t parameter, const at::Tensor& values);

 protected:
  /// A tensor of state for every parameter, filled with `initial` before the first update.
  struct Slot {
    std::string name;
    double initial = 0;
  };
  /// `own`: the values that a group leaves negative. At most two slots.
  /// Throws Failure{InvalidArgument} on no parameters, one that is not a leaf, or one given twice.
  Optimizer(std::string name, std::vector<ParamGroup> groups, const ParamGroup& own, std::vector<Slot> slots);
  /// Updates `elements`; `step` counts their parameter's updates from 1, this one included. No order among calls.
  virtual void apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) = 0;

 private:
  /// Where a parameter's state lies: elements of a block of the store.
  struct Entry {
    std::size_t block = 0;
    std::int64_t first = 0;
    std::int64_t step = 0;  // updates so far; 0: no state
  };
  void update();
  /// Updates the parameters of `grads` that live in `home`.
  void update_in(const detail::Residence* home, const std::vector<at::Tensor>& grads);
  /// Gives state to the parameters without, of those chosen; neighbours share a block.
  void add_entries(const std::vector<bool>& chosen);
  [[nodiscard]] std::string key(const std::string& slot, std::size_t index, StateKeys keys) const;
  [[nodiscard]] bool has_state() const noexcept;

  std::string name_;
  std::vector<ParamGroup> groups_;
  std::vector<double> base_lrs_;
  std::vector<Slot> slots_;
  std::vector<at::Tensor> handles_;
  std::vector<std::string> names_;
  std::vector<Entry> entries_;  // by parameter, over all groups
  std::vector<std::shared_ptr<detail::Residence>> residences_;  // likewise; empty: all in memory
  std::unique_ptr<detail::StateStore> store_;
  std::shared_ptr<const StepGate> gate_;
  std::function<void()> after_step_;
};

/// Options carry the defaults of torch.optim.
struct AdamWOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-2;
};

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101). State: exp_avg, exp_avg_sq.
class AdamW final : public Optimizer {
 public:
  AdamW(std::vector<at::Tensor> params, AdamWOptions options);
  AdamW(std::vector<ParamGroup> groups, AdamWOptions options);

 private:
  void apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) override;
  double eps_;
};

struct AdamOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
};

/// Adam (Kingma and Ba, arXiv 1412.6980); weight decay is added to the gradient. State: exp_avg, exp_avg_sq.
class Adam final : public Optimizer {
 public:
  Adam(std::vector<at::Tensor> params, AdamOptions options);
  Adam(std::vector<ParamGroup> groups, AdamOptions options);

 private:
  void apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) override;
  double eps_;
};

struct SGDOptions {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
};

/// Stochastic gradient descent, with momentum as torch.optim.SGD has it. State: momentum_buffer, if a group has momentum.
class SGD final : public Optimizer {
 public:
  SGD(std::vector<at::Tensor> params, SGDOptions options);
  SGD(std::vector<ParamGroup> groups, SGDOptions options);

 private:
  void apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) override;
  double dampening_;
  bool nesterov_;
};

struct AdagradOptions {
  double lr = 1e-2;
  double lr_decay = 0;
  double weight_decay = 0;
  double initial_accumulator_value = 0;
  double eps = 1e-10;
};

/// Adagrad (Duchi, Hazan and Singer, JMLR 12, 2011). State: sum.
class Adagrad final : public Optimizer {
 public:
  Adagrad(std::vector<at::Tensor> params, AdagradOptions options);
  Adagrad(std::vector<ParamGroup> groups, AdagradOptions options);

 private:
  void apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) override;
  double lr_decay_, eps_;
};

/// The paper's defaults.
struct LionOptions {
  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0;
};

/// Lion (Chen et al., arXiv 2302.06675). State: exp_avg.
class Lion final : public Optimizer {
 public:
  Lion(std::vector<at::Tensor> params, LionOptions options);
  Lion(std::vector<ParamGroup> groups, LionOptions options);

 private:
  void apply(const detail::Elements& elements, const ParamGroup& group, std::int64_t step) override;
};

}  // namespace troupe

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

/// Parameters that share settings. Negative: the optimizer's own value.
struct ParamGroup {
  std::vector<at::Tensor> params;
  double lr = -1;
  double weight_decay = -1;
};

/// What an optimizer's `step` and `zero_grad` may do now; whoever prepared it sets this.
struct StepGate {
  bool sync = true;   ///< an accumulation window ends here: false holds back both
  bool skip = false;  ///< the gradients overflowed on some rank: `step` and the scheduler do nothing, `zero_grad` acts
};

/// Base of optimizers: parameter groups, a learning rate a scheduler may set, and state by parameter.
///
/// A prepared one acts only on the last step of an accumulation window: before that, `step` and `zero_grad` do
/// nothing, as in Accelerate, so the loop reads the same with and without accumulation.
///
/// Threads: the rank's own.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// One update of every parameter that has a gradient.
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
  /// pieces' gradients; state has the pieces' shapes. Throws Failure{InvalidArgument} on other counts, and once there is state.
  void repoint(std::vector<std::vector<at::Tensor>> pieces);
  /// The parameters as constructed, over all groups; `handles()[i]` became piece i.
  [[nodiscard]] const std::vector<at::Tensor>& handles() const noexcept { return handles_; }

  [[nodiscard]] const std::vector<ParamGroup>& groups() const noexcept { return groups_; }
  /// Learning rates as constructed, one a group: what schedulers scale.
  [[nodiscard]] const std::vector<double>& base_lrs() const noexcept { return base_lrs_; }
  void set_lr(std::size_t group, double lr);
  [[nodiscard]] double lr(std::size_t group = 0) const;

  /// Named state tensors ("exp_avg.<i>", "step.<i>", i counts parameters over all groups) for checkpoints. A
  /// parameter that was never updated has none.
  [[nodiscard]] virtual std::vector<std::pair<std::string, at::Tensor>> state() const = 0;
  /// Copies. Throws Failure{InvalidArgument} naming a tensor that is missing, unknown or of another shape.
  virtual void load_state(const std::vector<std::pair<std::string, at::Tensor>>& state) = 0;

 protected:
  /// Throws Failure{InvalidArgument} on no parameters, one that is not a leaf, or one given twice.
  Optimizer(std::vector<ParamGroup> groups, double lr, double weight_decay);
  virtual void update() = 0;
  std::vector<ParamGroup> groups_;

 private:
  std::vector<double> base_lrs_;
  std::vector<at::Tensor> handles_;
  std::shared_ptr<const StepGate> gate_;
  std::function<void()> after_step_;
};

struct AdamWOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-2;
};

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101), one fused pass over memory per step.
class AdamW final : public Optimizer {
 public:
  AdamW(std::vector<at::Tensor> params, AdamWOptions options);
  AdamW(std::vector<ParamGroup> groups, AdamWOptions options);
  ~AdamW() override;
  [[nodiscard]] std::vector<std::pair<std::string, at::Tensor>> state() const override;
  void load_state(const std::vector<std::pair<std::string, at::Tensor>>& state) override;

 private:
  void update() override;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe

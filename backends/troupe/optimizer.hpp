#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

/// Parameters that share settings. Nothing set: the optimizer's own default.
struct ParamGroup {
  std::vector<at::Tensor> params;
  double lr = -1;            ///< negative: the optimizer's
  double weight_decay = -1;  ///< negative: the optimizer's
};

/// Base of optimizers: parameter groups, a learning rate a scheduler may set, and state by parameter.
/// Threads: the rank's own.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual void step() = 0;
  void zero_grad(bool set_to_none = true);
  [[nodiscard]] std::vector<ParamGroup>& groups() noexcept { return groups_; }
  [[nodiscard]] const std::vector<ParamGroup>& groups() const noexcept { return groups_; }
  /// Learning rates as constructed, one a group: what schedulers scale.
  [[nodiscard]] const std::vector<double>& base_lrs() const noexcept { return base_lrs_; }
  void set_lr(std::size_t group, double lr);
  [[nodiscard]] double lr(std::size_t group = 0) const;

  /// Named state tensors ("exp_avg.<i>", "step.<i>", i counts parameters over all groups) for checkpoints.
  [[nodiscard]] virtual std::vector<std::pair<std::string, at::Tensor>> state() const = 0;
  virtual void load_state(const std::vector<std::pair<std::string, at::Tensor>>& state) = 0;

 protected:
  Optimizer(std::vector<ParamGroup> groups, double lr, double weight_decay);
  std::vector<ParamGroup> groups_;
  std::vector<double> base_lrs_;
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
  void step() override;
  [[nodiscard]] std::vector<std::pair<std::string, at::Tensor>> state() const override;
  void load_state(const std::vector<std::pair<std::string, at::Tensor>>& state) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe

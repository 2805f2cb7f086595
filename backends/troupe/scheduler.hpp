#pragma once

#include <troupe/optimizer.hpp>

#include <cstdint>
#include <functional>

namespace troupe {

/// Sets an optimizer's learning rate to base_lr * factor(updates so far); the first update uses factor(0).
///
/// One step per optimizer update, whatever the number of ranks and of accumulated batches: `step` does nothing while
/// the optimizer does nothing: inside an accumulation window, and when it skips a step. (Accelerate steps a prepared scheduler once per process.)
class LRScheduler {
 public:
  using Factor = std::function<double(std::int64_t update)>;
  /// The optimizer must outlive the scheduler.
  LRScheduler(Optimizer& optimizer, Factor factor);
  void step();
  [[nodiscard]] std::int64_t last_step() const noexcept { return step_; }
  /// How far `step` goes at an update; 1, but for `Compat::step_scheduler_per_process`.
  void set_steps_per_update(std::int64_t steps) noexcept { steps_per_update_ = steps; }
  /// Continues after `step` updates.
  void set_step(std::int64_t step);
  [[nodiscard]] double get_last_lr(std::size_t group = 0) const { return optimizer_.lr(group); }
  [[nodiscard]] Optimizer& optimizer() noexcept { return optimizer_; }

 private:
  Optimizer& optimizer_;
  Factor factor_;
  std::int64_t step_ = 0;
  std::int64_t steps_per_update_ = 1;
};

/// Names as in Transformers: 0 to 1 over `num_warmup_steps`, then to 0 at `num_training_steps`, along a line, half a
/// cosine, or constant.
[[nodiscard]] LRScheduler get_linear_schedule_with_warmup(Optimizer& optimizer, std::int64_t num_warmup_steps,
                                                          std::int64_t num_training_steps);
[[nodiscard]] LRScheduler get_cosine_schedule_with_warmup(Optimizer& optimizer, std::int64_t num_warmup_steps,
                                                          std::int64_t num_training_steps, double num_cycles = 0.5);
[[nodiscard]] LRScheduler get_constant_schedule_with_warmup(Optimizer& optimizer, std::int64_t num_warmup_steps);

}  // namespace troupe

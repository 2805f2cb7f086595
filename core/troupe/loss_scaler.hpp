#pragma once

#include <troupe/sharding_options.hpp>

#include <cstdint>

namespace troupe {

/// The factor that keeps fp16 gradients off zero: halved when they overflow, doubled after a long time in which they did not.
///
/// A pure state machine: every rank gives it the same `overflow` and so has the same scale. Two policies, to the step:
/// - GradScaler (torch.amp): an overflow multiplies by `backoff_factor`, `growth_interval` good steps in a row by
///   `growth_factor`, unless that leaves fp32's range.
/// - DeepSpeed (DynamicLossScaler): `hysteresis` - 1 overflows are forgiven, each further one shrinks, not below `minimum`.
///   It grows at the good steps that come n * growth_interval good steps after the last overflow, n = 1, 2, …; that, or
///   any good step with `consecutive_hysteresis`, restores the forgiveness.
///
/// Threads: the rank's own.
class LossScaler {
 public:
  /// What a checkpoint keeps.
  struct State {
    double scale = 0;
    std::int64_t good_steps = 0;  ///< since the last overflow; GradScaler: or growth
    int hysteresis = 1;           ///< overflows until it shrinks
    friend bool operator==(const State&, const State&) = default;
  };

  /// Throws Failure{InvalidConfig} naming a setting out of range.
  explicit LossScaler(const LossScale& options);

  /// Multiply the loss by it, divide the gradients by it.
  [[nodiscard]] double scale() const noexcept { return state_.scale; }
  /// After each optimizer step, done or skipped. Throws Failure{TrainFunctionFailed} on an overflow that cannot be answered by
  /// a smaller scale: at `minimum` (DeepSpeed), or when fp32 has none (GradScaler, where the original goes on at 0 for ever).
  void update(bool overflow);

  [[nodiscard]] const State& state() const noexcept { return state_; }
  /// Throws Failure{InvalidArgument} on a scale or counts that no run reaches.
  void set_state(const State& state);

 private:
  void shrink();
  LossScale options_;
  State state_;
};

}  // namespace troupe

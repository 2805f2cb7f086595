#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace troupe {

/// A learning rate schedule by DeepSpeed's names: the `scheduler` section of its JSON. Fields of other types are unused.
struct LRScheduleConfig {
  std::string type{};  ///< WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle or LRRangeTest

  double warmup_min_lr = 0;             ///< WarmupLR, WarmupDecayLR
  std::optional<double> warmup_max_lr{};  ///< none: the optimizer's
  std::int64_t warmup_num_steps = 1000; ///< taken as 2 when it is 1
  bool warmup_log = true;               ///< warmup_type: "log", else "linear"
  std::int64_t total_num_steps = 0;     ///< WarmupDecayLR, WarmupCosineLR
  double warmup_min_ratio = 0;          ///< WarmupCosineLR, of the optimizer's lr
  double cos_min_ratio = 1e-4;

  double cycle_min_lr = 0;  ///< OneCycle
  double cycle_max_lr = 0;
  double decay_lr_rate = 0;
  std::int64_t cycle_first_step_size = 2000;
  std::optional<std::int64_t> cycle_second_step_size{};  ///< none: the first
  std::int64_t cycle_first_stair_count = 0;            ///< 0: no stairs
  std::optional<std::int64_t> cycle_second_stair_count{};
  std::int64_t decay_step_size = 0;  ///< 0: no decay after the cycle

  double lr_range_test_min_lr = 1e-3;  ///< LRRangeTest
  std::int64_t lr_range_test_step_size = 2000;
  double lr_range_test_step_rate = 1;
  bool lr_range_test_staircase = false;
};

/// The learning rate that optimizer update number `update` (from 0) uses; `base_lr` is the optimizer's own. As
/// DeepSpeed's schedulers stepped once per successful update: the first update uses the value they are constructed with,
/// so warm-ups are one update behind (update 1 is their step 0).
/// Throws Failure{InvalidConfig} for an unknown type.
[[nodiscard]] double lr_at(const LRScheduleConfig& schedule, double base_lr, std::int64_t update);

}  // namespace troupe

#include <troupe/errors.hpp>
#include <troupe/lr_schedule.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace troupe {

namespace {

/// How far a warm-up of `num_steps` is at `step`, from 0 to 1.
double warmup(const LRScheduleConfig& s, std::int64_t step, std::int64_t num_steps) {
  const auto steps = static_cast<double>(num_steps);
  return s.warmup_log ? std::log(static_cast<double>(step + 1)) / std::log(steps) : static_cast<double>(step) / steps;
}

double warmup_lr(const LRScheduleConfig& s, double base_lr, std::int64_t step) {
  if (step < 0) return s.warmup_min_lr;
  const bool decays = s.type == "WarmupDecayLR";
  const double max_lr = s.warmup_max_lr.value_or(decays ? 1e-3 : base_lr);  // DeepSpeed's defaults differ, too
  const auto num_steps = std::max<std::int64_t>(2, s.warmup_num_steps);
  double gamma = 1;
  if (step < num_steps) {
    gamma = warmup(s, step, num_steps);
  } else if (decays) {
    const auto span = std::max<std::int64_t>(1, s.total_num_steps - num_steps);
    gamma = std::max(0.0, static_cast<double>(s.total_num_steps - step) / static_cast<double>(span));
  }
  return s.warmup_min_lr + (max_lr - s.warmup_min_lr) * gamma;
}

double warmup_cosine_lr(const LRScheduleConfig& s, double base_lr, std::int64_t step) {
  if (step < 0) return 0;
  const auto num_steps = std::max<std::int64_t>(2, s.warmup_num_steps);
  if (step < num_steps) return base_lr * (s.warmup_min_ratio + (1 - s.warmup_min_ratio) * warmup(s, step, num_steps));
  const auto span = std::max<std::int64_t>(1, s.total_num_steps - num_steps);
  const double progress = std::min(1.0, static_cast<double>(step - num_steps + 1) / static_cast<double>(span));
  const double cosine = (1 + std::cos(std::numbers::pi * progress)) / 2;
  return base_lr * std::max(0.0, s.cos_min_ratio + (1 - s.cos_min_ratio) * cosine);
}

double one_cycle_lr(const LRScheduleConfig& s, std::int64_t update) {
  const auto first = static_cast<double>(s.cycle_first_step_size);
  const auto second = static_cast<double>(s.cycle_second_step_size.value_or(s.cycle_first_step_size));
  const double total = first + second;
  const auto at = static_cast<double>(update);
  if (at > total) {
    if (s.decay_step_size == 0 || s.decay_lr_rate == 0) return s.cycle_min_lr;
    return s.cycle_min_lr / (1 + s.decay_lr_rate * (at - total) / static_cast<double>(s.decay_step_size));
  }
  const double position = std::fmod(at, total);
  const bool rising = position <= first;
  double scale = rising ? position / first : (total - position) / second;
  const auto stairs = rising ? s.cycle_first_stair_count : s.cycle_second_stair_count.value_or(s.cycle_first_stair_count);
  if (stairs > 0) {
    const auto count = static_cast<double>(stairs);
    scale = std::floor(rising ? position * count / first : (total - position) * count / second) / count;
  }
  return s.cycle_min_lr + (s.cycle_max_lr - s.cycle_min_lr) * scale;
}

double range_test_lr(const LRScheduleConfig& s, std::int64_t update) {
  double interval = static_cast<double>(update) / static_cast<double>(s.lr_range_test_step_size);
  if (s.lr_range_test_staircase) interval = std::floor(interval);
  return s.lr_range_test_min_lr * (1 + s.lr_range_test_step_rate * interval);
}

}  // namespace

double lr_at(const LRScheduleConfig& schedule, double base_lr, std::int64_t update) {
  const auto& type = schedule.type;
  if (type == "WarmupLR" || type == "WarmupDecayLR") return warmup_lr(schedule, base_lr, update - 1);
  if (type == "WarmupCosineLR") return warmup_cosine_lr(schedule, base_lr, update - 1);
  if (type == "OneCycle") return one_cycle_lr(schedule, update);
  if (type == "LRRangeTest") return range_test_lr(schedule, update);
  throw Failure{Errc::InvalidConfig, "learning rate schedule '" + type +
                                         "' is unknown; there are: WarmupLR WarmupDecayLR WarmupCosineLR OneCycle LRRangeTest"};
}

}  // namespace troupe

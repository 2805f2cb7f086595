#include <troupe/errors.hpp>
#include <troupe/scheduler.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace troupe {

namespace {

double ratio(std::int64_t part, std::int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(std::max<std::int64_t>(1, whole));
}

void check(std::int64_t warmup, std::int64_t total) {
  if (warmup < 0 || total < 0) {
    throw Failure{Errc::InvalidArgument, "schedule: " + std::to_string(warmup) + " warm-up steps of " + std::to_string(total) +
                                             " training steps; neither may be negative"};
  }
}

}  // namespace

LRScheduler::LRScheduler(Optimizer& optimizer, Factor factor) : optimizer_(optimizer), factor_(std::move(factor)) { set_step(0); }

void LRScheduler::step() {
  if (optimizer_.steps()) set_step(step_ + steps_per_update_);
}

void LRScheduler::set_step(std::int64_t step) {
  step_ = step;
  const auto factor = factor_(step);
  const auto& base = optimizer_.base_lrs();
  for (std::size_t g = 0; g < base.size(); ++g) optimizer_.set_lr(g, base[g] * factor);
}

LRScheduler get_linear_schedule_with_warmup(Optimizer& optimizer, std::int64_t warmup, std::int64_t total) {
  check(warmup, total);
  return {optimizer, [warmup, total](std::int64_t step) {
            if (step < warmup) return ratio(step, warmup);
            return std::max(0.0, ratio(total - step, total - warmup));
          }};
}

LRScheduler get_cosine_schedule_with_warmup(Optimizer& optimizer, std::int64_t warmup, std::int64_t total, double num_cycles) {
  check(warmup, total);
  return {optimizer, [warmup, total, num_cycles](std::int64_t step) {
            if (step < warmup) return ratio(step, warmup);
            const auto progress = ratio(step - warmup, total - warmup);
            return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * num_cycles * 2.0 * progress)));
          }};
}

LRScheduler get_constant_schedule_with_warmup(Optimizer& optimizer, std::int64_t warmup) {
  check(warmup, 0);
  return {optimizer, [warmup](std::int64_t step) { return step < warmup ? ratio(step, warmup) : 1.0; }};
}

}  // namespace troupe

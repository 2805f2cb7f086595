#include <troupe/errors.hpp>
#include <troupe/scheduler.hpp>

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace troupe {
namespace {

struct Schedules : testing::Test {
  at::Tensor a = at::randn({2}).requires_grad_(true);
  at::Tensor b = at::randn({2}).requires_grad_(true);
  AdamW optimizer{{ParamGroup{.params = {a}, .lr = 1.0}, ParamGroup{.params = {b}, .lr = 0.5}}, {}};
};

TEST_F(Schedules, LinearRisesThenFallsToZeroInEveryGroup) {
  auto schedule = get_linear_schedule_with_warmup(optimizer, 3, 10);
  for (int step = 0; step <= 12; ++step) {
    const double factor = step < 3 ? step / 3.0 : std::max(0.0, (10.0 - step) / 7.0);
    EXPECT_DOUBLE_EQ(schedule.get_last_lr(0), factor) << step;
    EXPECT_DOUBLE_EQ(schedule.get_last_lr(1), 0.5 * factor) << step;
    schedule.step();
  }
}

TEST_F(Schedules, CosineFollowsHalfAWave) {
  auto schedule = get_cosine_schedule_with_warmup(optimizer, 2, 12);
  for (int step = 0; step <= 12; ++step) {
    const double factor = step < 2 ? step / 2.0 : 0.5 * (1 + std::cos(std::numbers::pi * (step - 2) / 10.0));
    EXPECT_NEAR(schedule.get_last_lr(), factor, 1e-15) << step;
    schedule.step();
  }
}

TEST_F(Schedules, ConstantStaysAfterWarmup) {
  auto schedule = get_constant_schedule_with_warmup(optimizer, 4);
  for (int step = 0; step < 8; ++step) {
    EXPECT_DOUBLE_EQ(schedule.get_last_lr(), std::min(1.0, step / 4.0));
    schedule.step();
  }
}

TEST_F(Schedules, StepOncePerUpdateOfTheirOptimizer) {
  auto schedule = get_linear_schedule_with_warmup(optimizer, 0, 10);
  auto gate = std::make_shared<StepGate>(StepGate{.sync = false});
  optimizer.set_gate(gate);
  schedule.step();
  EXPECT_EQ(schedule.last_step(), 0);
  gate->sync = true;
  schedule.step();
  EXPECT_EQ(schedule.last_step(), 1);
  gate->skip = true;
  schedule.step();
  EXPECT_EQ(schedule.last_step(), 1);
}

TEST_F(Schedules, ContinueWhereTheyWereSet) {
  auto schedule = get_linear_schedule_with_warmup(optimizer, 0, 10);
  schedule.set_step(5);
  EXPECT_DOUBLE_EQ(schedule.get_last_lr(), 0.5);
  schedule.step();
  EXPECT_DOUBLE_EQ(schedule.get_last_lr(), 0.4);
}

TEST_F(Schedules, RefuseNegativeSteps) { EXPECT_THROW((void)get_linear_schedule_with_warmup(optimizer, -1, 10), Failure); }

}  // namespace
}  // namespace troupe

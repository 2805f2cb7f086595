#include <troupe/errors.hpp>
#include <troupe/loss_scaler.hpp>

#include <gtest/gtest.h>

#include <vector>

namespace troupe {
namespace {

/// The scale after each step; 'o' is an overflow, '.' a good step.
std::vector<double> run(LossScaler& scaler, const std::string& steps) {
  std::vector<double> scales;
  for (const char step : steps) {
    scaler.update(step == 'o');
    scales.push_back(scaler.scale());
  }
  return scales;
}
using Scales = std::vector<double>;

LossScale deepspeed(double initial, std::int64_t window, int hysteresis = 1, bool consecutive = false) {
  return {.policy = LossScale::Policy::DeepSpeed, .initial = initial, .growth_interval = window, .hysteresis = hysteresis,
          .consecutive_hysteresis = consecutive, .minimum = 1};
}

TEST(GradScalerPolicy, HalvesAtAnOverflowAndDoublesAfterAnInterval) {
  LossScaler scaler{{.growth_interval = 3}};
  EXPECT_EQ(scaler.scale(), 65536);
  EXPECT_EQ(run(scaler, "oo..o......"), (Scales{32768, 16384, 16384, 16384, 8192, 8192, 8192, 16384, 16384, 16384, 32768}));
}

TEST(GradScalerPolicy, HasTorchsDefaults) {
  LossScaler scaler{{}};
  run(scaler, std::string(1999, '.'));
  EXPECT_EQ(scaler.scale(), 65536);
  scaler.update(false);
  EXPECT_EQ(scaler.scale(), 131072);
}

TEST(GradScalerPolicy, StaysInFp32) {
  LossScaler scaler{{.initial = 1.7e38, .growth_interval = 1}};
  EXPECT_EQ(run(scaler, ".."), (Scales{3.4e38, 3.4e38}));
}

TEST(GradScalerPolicy, EndsTheRunWhenNoScaleIsLeft) {
  LossScaler scaler{{.initial = 1}};
  EXPECT_EQ(run(scaler, std::string(149, 'o')).back(), 0x1p-149);
  EXPECT_THROW(scaler.update(true), Failure);
}

// The sequences of DeepSpeed's tests/unit/runtime/half_precision/test_dynamic_loss_scale.py.
TEST(DeepSpeedPolicy, GrowsEveryWindowWithoutOverflow) {  // test_no_overflow
  LossScaler scaler{deepspeed(256, 2)};
  double expected = 256;
  for (int i = 0; i < 10; ++i) {
    scaler.update(false);
    EXPECT_EQ(scaler.scale(), expected) << i;
    if ((i + 1) % 2 == 0) expected *= 2;
  }
}

TEST(DeepSpeedPolicy, ShrinksToTheMinimumThenEndsTheRun) {  // test_all_overflow; the run ends as in DynamicLossScaler
  LossScaler scaler{deepspeed(16, 2)};
  EXPECT_EQ(run(scaler, "oooo"), (Scales{8, 4, 2, 1}));
  try {
    scaler.update(true);
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::TrainFunctionFailed);
    EXPECT_NE(std::string{failure.what()}.find("overflow"), std::string::npos);
  }
}

TEST(DeepSpeedPolicy, RecoversAWindowAfterTheLastOverflow) {  // test_some_overflow
  LossScaler scaler{deepspeed(256, 2)};
  EXPECT_EQ(run(scaler, "oo" "..." "o" "..."), (Scales{128, 64, 64, 64, 128, 64, 64, 64, 128}));
}

TEST(DeepSpeedPolicy, ForgivesUntilItsHysteresisIsSpent) {
  LossScaler scaler{deepspeed(256, 2, 3)};
  EXPECT_EQ(run(scaler, "o.o.oo"), (Scales{256, 256, 256, 256, 128, 64}));
  EXPECT_EQ(run(scaler, "...ooo"), (Scales{64, 64, 128, 128, 128, 64}));  // growing refilled it
}

TEST(DeepSpeedPolicy, ForgivesAnewAfterEveryGoodStepIfAsked) {
  LossScaler scaler{deepspeed(256, 100, 2, true)};
  EXPECT_EQ(run(scaler, "o.o.oo"), (Scales{256, 256, 256, 256, 256, 128}));
}

TEST(LossScaler, KeepsAFixedScale) {
  LossScaler scaler{{.dynamic = false, .initial = 128, .growth_interval = 1}};
  EXPECT_EQ(run(scaler, "oo.."), (Scales{128, 128, 128, 128}));
}

TEST(LossScaler, ContinuesFromItsState) {
  for (const auto& options : {deepspeed(256, 3, 2), LossScale{.growth_interval = 3}}) {
    LossScaler one{options}, two{options};
    run(one, "oo..");
    two.set_state(one.state());
    EXPECT_EQ(run(one, "..o...."), run(two, "..o...."));
    EXPECT_EQ(one.state(), two.state());
  }
}

TEST(LossScaler, RefusesSettingsOutOfRange) {
  EXPECT_THROW(LossScaler{LossScale{.initial = 0}}, Failure);
  EXPECT_THROW(LossScaler{LossScale{.growth_factor = 1}}, Failure);
  EXPECT_THROW(LossScaler{LossScale{.backoff_factor = 1}}, Failure);
  EXPECT_THROW(LossScaler{LossScale{.growth_interval = 0}}, Failure);
  EXPECT_THROW(LossScaler{LossScale{.hysteresis = 0}}, Failure);
  EXPECT_THROW((LossScaler{LossScale{.initial = 1, .minimum = 2}}), Failure);
  LossScaler scaler{{}};
  EXPECT_THROW(scaler.set_state({.scale = 0}), Failure);
}

}  // namespace
}  // namespace troupe

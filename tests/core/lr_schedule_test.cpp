#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <troupe/deepspeed_plugin.hpp>
#include <troupe/errors.hpp>
#include <troupe/lr_schedule.hpp>

namespace troupe {
namespace {

/// lr_schedules.json: what DeepSpeed's own schedulers set, update by update; its source is named in the file.
TEST(LRSchedule, EqualsDeepSpeedsSchedulers) {
  std::ifstream in{std::string{TROUPE_TEST_CONFIG} + "/lr_schedules.json"};
  const auto golden = nlohmann::ordered_json::parse(in);
  int compared = 0;
  for (const auto& one : golden["cases"]) {
    const nlohmann::ordered_json file{{"scheduler", {{"type", one["type"]}, {"params", one["params"]}}}};
    const auto schedule = *DeepSpeedPlugin::from_dict(file).resolve().scheduler;
    for (std::size_t update = 0; update < one["lr"].size(); ++update) {
      const auto wanted = one["lr"][update].get<double>();
      EXPECT_NEAR(lr_at(schedule, one["base_lr"].get<double>(), static_cast<std::int64_t>(update)), wanted, 1e-15) << one["type"] << " update " << update;
      ++compared;
    }
  }
  EXPECT_GT(compared, 150);
}

TEST(LRSchedule, EqualsHandComputedValues) {
  LRScheduleConfig s{.type = "WarmupLR", .warmup_num_steps = 4};
  EXPECT_EQ(lr_at(s, 1, 0), 0);
  EXPECT_DOUBLE_EQ(lr_at(s, 1, 2), 0.5);                          // ln 2 / ln 4
  EXPECT_DOUBLE_EQ(lr_at(s, 1, 3), std::log(3.0) / std::log(4.0));
  EXPECT_DOUBLE_EQ(lr_at(s, 1, 5), 1);
  s = {.type = "WarmupDecayLR", .warmup_max_lr = 2.0, .warmup_num_steps = 4, .warmup_log = false, .total_num_steps = 12};
  EXPECT_DOUBLE_EQ(lr_at(s, 1, 3), 1.0);
  EXPECT_DOUBLE_EQ(lr_at(s, 1, 9), 1.0);  // step 8: half of the decay is over
  EXPECT_DOUBLE_EQ(lr_at(s, 1, 100), 0);
  s = {.type = "WarmupCosineLR", .warmup_num_steps = 2, .warmup_log = false, .total_num_steps = 10, .cos_min_ratio = 0.5};
  EXPECT_DOUBLE_EQ(lr_at(s, 4, 2), 2.0);
  EXPECT_DOUBLE_EQ(lr_at(s, 4, 6), 3.0);  // step 5: half way, cos = 0
  EXPECT_DOUBLE_EQ(lr_at(s, 4, 50), 2.0);
  s = {.type = "OneCycle", .cycle_min_lr = 1, .cycle_max_lr = 3, .cycle_first_step_size = 4};
  EXPECT_DOUBLE_EQ(lr_at(s, 9, 2), 2);
  EXPECT_DOUBLE_EQ(lr_at(s, 9, 4), 3);
  EXPECT_DOUBLE_EQ(lr_at(s, 9, 6), 2);
  EXPECT_DOUBLE_EQ(lr_at(s, 9, 20), 1);
  s = {.type = "LRRangeTest", .lr_range_test_min_lr = 0.5, .lr_range_test_step_size = 4, .lr_range_test_step_rate = 2};
  EXPECT_DOUBLE_EQ(lr_at(s, 9, 2), 1.0);
  s.lr_range_test_staircase = true;
  EXPECT_DOUBLE_EQ(lr_at(s, 9, 3), 0.5);
}

TEST(LRSchedule, NamesWhatThereIsWhenTheTypeIsUnknown) { EXPECT_THROW((void)lr_at({.type = "Warmup"}, 1, 0), Failure); }

}  // namespace
}  // namespace troupe

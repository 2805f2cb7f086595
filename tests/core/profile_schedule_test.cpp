#include <troupe/errors.hpp>
#include <troupe/profile_schedule.hpp>

#include <gtest/gtest.h>

#include <string>

namespace troupe {
namespace {

/// One letter a step: idle, warm-up, record, save.
std::string actions(const ProfileSchedule& schedule, int steps) {
  std::string text;
  for (int step = 0; step < steps; ++step) text += "-wrs"[static_cast<int>(profile_action(schedule, step))];
  return text;
}

// Lines of torch.profiler.schedule, torch 2.11.
TEST(ProfileSchedule, FollowsTorchsCycle) {
  EXPECT_EQ(actions({.wait = 1, .warmup = 1, .active = 2}, 10), "-wrs-wrs-w");
  EXPECT_EQ(actions({.wait = 1, .warmup = 1, .active = 2, .repeat = 1}, 10), "-wrs------");
  EXPECT_EQ(actions({.wait = 0, .warmup = 1, .active = 3, .repeat = 2, .skip_first = 2}, 12), "--wrrswrrs--");
  EXPECT_EQ(actions({.active = 1}, 3), "sss");
}

TEST(ProfileSchedule, RefusesNegativeStepsAndNoActiveOne) {
  EXPECT_THROW(validate({.active = 0}), Failure);
  EXPECT_THROW(validate({.wait = -1}), Failure);
  EXPECT_NO_THROW(validate({}));
}

}  // namespace
}  // namespace troupe

#pragma once

#include <cstdint>

namespace troupe {

/// Which steps a profiler records; names and meaning as in torch.profiler.schedule. A cycle is `wait` idle steps,
/// `warmup` steps that are recorded and dropped, and `active` recorded ones.
struct ProfileSchedule {
  int wait = 0;
  int warmup = 0;
  int active = 1;
  int repeat = 0;      ///< cycles; 0: until the end
  int skip_first = 0;  ///< idle steps before the first cycle
};

enum class ProfileAction : std::uint8_t {
  Idle,
  Warmup,        ///< record, and forget it when the active steps begin
  Record,
  RecordAndSave  ///< the cycle's last step
};

/// Throws Failure{InvalidArgument} naming a field out of range: `active` is at least 1, the others are not negative.
void validate(const ProfileSchedule& schedule);
/// What to do in step `step`, from 0.
[[nodiscard]] ProfileAction profile_action(const ProfileSchedule& schedule, std::int64_t step) noexcept;

}  // namespace troupe

#include <troupe/errors.hpp>
#include <troupe/profile_schedule.hpp>

#include <string>
#include <tuple>

namespace troupe {

void validate(const ProfileSchedule& s) {
  for (const auto& [name, value, least] : {std::tuple{"wait", s.wait, 0}, {"warmup", s.warmup, 0}, {"active", s.active, 1},
                                           {"repeat", s.repeat, 0}, {"skip_first", s.skip_first, 0}}) {
    if (value >= least) continue;
    throw Failure{Errc::InvalidArgument, "profile: schedule_option." + std::string{name} + " = " + std::to_string(value) +
                                             ", but it must be " + std::to_string(least) + " or more"};
  }
}

ProfileAction profile_action(const ProfileSchedule& s, std::int64_t step) noexcept {
  step -= s.skip_first;
  if (step < 0) return ProfileAction::Idle;
  const std::int64_t cycle = std::int64_t{s.wait} + s.warmup + s.active;
  if (s.repeat > 0 && step / cycle >= s.repeat) return ProfileAction::Idle;
  const auto at = step % cycle;
  if (at < s.wait) return ProfileAction::Idle;
  if (at < std::int64_t{s.wait} + s.warmup) return ProfileAction::Warmup;
  return at == cycle - 1 ? ProfileAction::RecordAndSave : ProfileAction::Record;
}

}  // namespace troupe

#include <troupe/failure_policy.hpp>
#include <troupe/failure_rules.hpp>
#include <troupe/group_rules.hpp>

#include <algorithm>

namespace troupe {

bool worth_retrying(Errc code) noexcept { return failure_rule(code).retry; }

bool must_end_program(Errc code, Placement placement) noexcept { return placement == Placement::Threads && !failure_rule(code).keeps_process; }

Verdict after_group_ended(const std::optional<RunError>& error, bool stop_requested, bool got_on, const FailuresSoFar& before,
                          const FailureConfig& config) {
  const int failures = before.counted;
  if (!error) return {NextStep::Finish, "every rank returned"};
  if (stop_requested) return {NextStep::Fail, "a stop was requested"};
  const auto& rule = failure_rule(error->code);
  if (!rule.retry) {
    return {NextStep::Fail, std::string(name(error->code)) + " does not get better by trying again: " + std::string(rule.why)};
  }
  if (rule.most >= 0 && before.same + 1 >= rule.most && config.max_failures != 0) {
    return {NextStep::Fail, std::string(name(error->code)) + " for the " + (rule.most == 2 ? "second" : rule.most == 3 ? "third" : std::to_string(rule.most) + "th") +
                                " time: " + std::string(rule.advice)};
  }
  if (config.max_failures == 0) return {NextStep::Fail, "max_failures is 0"};
  if (config.max_failures > 0 && failures >= config.max_failures) {
    return {NextStep::Fail, "failed " + std::to_string(failures + 1) + " times, max_failures is " +
                                std::to_string(config.max_failures)};
  }
  if (!got_on && before.fruitless + 1 >= config.crash_loop_limit) {
    return {NextStep::Fail, std::to_string(before.fruitless + 1) + " attempts in a row failed before they got anywhere (crash_loop_limit)"};
  }
  return {NextStep::Retry, "failure " + std::to_string(failures + 1) + " of " +
                               (config.max_failures < 0 ? "any number"
                                                        : std::to_string(config.max_failures))};
}

Escalation restart_level(std::optional<int> rank, const RestartCounts& before, const FailureConfig& config) {
  if (!rank) return {RestartLevel::Rank, "no rank in particular failed"};
  const auto who = "rank " + std::to_string(*rank);
  const int failures = before.of_rank + 1;
  if (config.max_rank_failures < 0) return {RestartLevel::Rank, who + " is replaced"};
  if (failures <= config.max_rank_failures) {
    return {RestartLevel::Rank, who + " is replaced, failure " + std::to_string(failures) + " of " + std::to_string(config.max_rank_failures) + " (max_rank_failures)"};
  }
  const auto why = who + " failed " + std::to_string(failures) + (failures == 1 ? " time" : " times") + ", max_rank_failures is " + std::to_string(config.max_rank_failures);
  const int renewals = before.of_group + 1;
  if (config.max_group_failures < 0 || renewals <= config.max_group_failures) {
    return {RestartLevel::Group, why + ": all ranks are started anew"};
  }
  return {RestartLevel::Run, why + ", and all ranks were started anew " + std::to_string(before.of_group) + " times already (max_group_failures)"};
}

std::chrono::milliseconds retry_delay(int fruitless, double jitter) noexcept {
  if (fruitless <= 0) return std::chrono::milliseconds{0};
  const int pause = std::min(10'000, 100 << std::clamp(fruitless - 1, 0, 7));
  return std::chrono::milliseconds{static_cast<int>(pause * (1 + std::clamp(jitter, -1.0, 1.0) / 4))};
}

int next_world_size(const std::optional<RunError>& error, int world_size, std::optional<int> places, int fruitless, const ScalingConfig& scaling) noexcept {
  if (scaling.min_workers == 0 || world_size <= scaling.min_workers || !error) return world_size;
  if (error->code == Errc::StartFailed) return std::clamp(places.value_or(world_size - 1), scaling.min_workers, world_size - 1);
  return fruitless >= 2 ? world_size - 1 : world_size;
}

std::optional<StateCopy> newest_copy(const std::vector<CheckpointRecord>& checkpoints, const std::optional<StateCopy>& snapshot) {
  if (checkpoints.empty()) return snapshot;
  const auto& newest = checkpoints.back();
  if (snapshot && snapshot->reports > newest.index) return snapshot;
  return StateCopy{newest.checkpoint.path(), 0, newest.index + 1, 0};
}

std::optional<RunError> first_cause(const std::vector<RunError>& errors, const std::set<int>& returned) {
  if (errors.empty()) return std::nullopt;
  for (const bool networks_too : {false, true}) {
    const auto cause = std::find_if(errors.begin(), errors.end(), [&](const RunError& error) {
      return error.code != Errc::Aborted && (networks_too || error.code != Errc::NetworkFailed);
    });
    if (cause != errors.end()) return *cause;
  }
  auto echo = errors.front();
  if (!returned.empty()) {
    echo.code = Errc::CollectiveMismatch;
    echo.message = "the train function of " + name_ranks(returned) + " returned early: " + echo.message;
  }
  return echo;
}

}  // namespace troupe

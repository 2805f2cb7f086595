#include <troupe/failure_policy.hpp>
#include <troupe/failure_rules.hpp>
#include <troupe/group_rules.hpp>

#include <algorithm>

namespace troupe {

bool worth_retrying(Errc code) noexcept { return failure_rule(code).retry; }

Verdict after_group_ended(const std::optional<RunError>& error, bool stop_requested, int failures,
                          const FailureConfig& config, int same_failures) {
  if (!error) return {NextStep::Finish, "every rank returned"};
  if (stop_requested) return {NextStep::Fail, "a stop was requested"};
  const auto& rule = failure_rule(error->code);
  if (!rule.retry) {
    return {NextStep::Fail, std::string(name(error->code)) + " does not get better by trying again: " + std::string(rule.why)};
  }
  if (rule.most >= 0 && same_failures + 1 >= rule.most && config.max_failures != 0) {
    return {NextStep::Fail, std::string(name(error->code)) + " for the " + (rule.most == 2 ? "second" : std::to_string(rule.most) + "th") +
                                " time: " + std::string(rule.advice)};
  }
  if (config.max_failures == 0) return {NextStep::Fail, "max_failures is 0"};
  if (config.max_failures > 0 && failures >= config.max_failures) {
    return {NextStep::Fail, "failed " + std::to_string(failures + 1) + " times, max_failures is " +
                                std::to_string(config.max_failures)};
  }
  return {NextStep::Retry, "failure " + std::to_string(failures + 1) + " of " +
                               (config.max_failures < 0 ? "any number"
                                                        : std::to_string(config.max_failures))};
}

std::chrono::milliseconds retry_delay(int failures) noexcept {
  return std::chrono::milliseconds{std::min(10'000, 100 << std::clamp(failures, 0, 7))};
}

std::optional<RunError> first_cause(const std::vector<RunError>& errors, const std::set<int>& returned) {
  if (errors.empty()) return std::nullopt;
  const auto cause = std::find_if(errors.begin(), errors.end(),
                                  [](const RunError& error) { return error.code != Errc::Aborted; });
  if (cause != errors.end()) return *cause;
  auto echo = errors.front();
  if (!returned.empty()) {
    echo.code = Errc::CollectiveMismatch;
    echo.message = "the train function of " + name_ranks(returned) + " returned early: " + echo.message;
  }
  return echo;
}

}  // namespace troupe

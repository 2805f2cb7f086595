#include "trainer_state.hpp"

#include <troupe/post_mortem.hpp>

#include <unistd.h>

#include <ctime>
#include <nlohmann/json.hpp>

namespace troupe {

namespace {

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "";
}

std::string date_now() {
  const auto now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[40];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &utc)};
}

}  // namespace

void TrainerState::write_post_mortem(const RunError& error, bool goes_on, const std::string& decision) {
  PostMortem page;
  page.run_name = run_name;
  page.attempt = attempt;
  page.node = host_name();
  page.world_size = setup.scaling.num_workers;
  page.placement = setup.scaling.placement == Placement::Processes ? "processes" : "threads";
  page.time_s = std::chrono::duration<double>(self->clock().now() - began).count();
  page.date = date_now();
  page.error = error;
  page.goes_on = goes_on;
  page.decision = decision;
  page.other_errors = other_errors;
  page.warnings = result.warnings;
  if (!result.checkpoints.empty()) page.resumes_from = checkpoint_name(result.checkpoints.back().index);
  // A copy of this attempt was taken at a step that only its rank knows; one from before costs the whole attempt.
  const bool kept_in_this_attempt = !result.checkpoints.empty() && result.checkpoints.back().index >= attempt_began_at_report;
  if (error.step && !kept_in_this_attempt) page.lost_steps = *error.step;
  result.post_mortem = post_mortem_name(attempt) + ".md";
  self->send(keeper, KeepPostMortem{post_mortem_name(attempt), to_markdown(page), to_json(page).dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"});
}

}  // namespace troupe

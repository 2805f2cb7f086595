#include "trainer_state.hpp"

#include <troupe/post_mortem.hpp>

#include <unistd.h>

#include <algorithm>
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
  page.world_size = world_size;
  page.placement = troupe::name(setup.scaling.placement);
  page.time_s = std::chrono::duration<double>(self->clock().now() - began).count();
  page.date = date_now();
  page.error = error;
  page.goes_on = goes_on;
  page.decision = decision;
  page.other_errors = other_errors;
  page.warnings = result.warnings;
  describe_copies(page);
  result.post_mortem = post_mortem_name(attempt) + ".md";
  tell_keeper(KeepPostMortem{post_mortem_name(attempt), to_markdown(page), to_json(page).dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"});
}

// Steps since the copy that the next attempt takes, as far as it is known at which step that was made.
void TrainerState::describe_copies(PostMortem& page) const {
  const auto copy = newest_copy(result.checkpoints, snapshot);
  const auto& step = page.error.step;
  if (!copy) {
    page.lost_steps = step;
    return;
  }
  page.resumes_from = copy->steps > 0 ? "the copy in memory after " + std::to_string(copy->steps) + " updates" : copy->path.filename().string();
  if (!step) return;
  const bool is_same = attempt_began_from && attempt_began_from->path == copy->path && attempt_began_from->steps == copy->steps;
  if (is_same) {
    page.lost_steps = step;
  } else if (copy->steps > 0 && (!attempt_began_from || attempt_began_from->steps > 0)) {
    const auto reached = (attempt_began_from ? attempt_began_from->steps : 0) + static_cast<std::int64_t>(*step);
    page.lost_steps = static_cast<std::uint64_t>(std::max<std::int64_t>(0, reached - copy->steps));
  }
}

}  // namespace troupe

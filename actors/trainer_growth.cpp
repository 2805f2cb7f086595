// An elastic run that has lost ranks gets them back: core/troupe/growth.hpp decides, this carries it out.
#include "trainer_state.hpp"

#include <troupe/growth.hpp>

#include <algorithm>

namespace troupe {

int TrainerState::wanted_by_user() const { return resized_to > 0 ? resized_to : setup.scaling.num_workers; }

// The time runs over attempts: who fails often is to grow all the same.
void TrainerState::plan_growth(bool is_new) {
  const auto next = next_growth(world_size, wanted_by_user(), growth.failed_tries, setup.scaling);
  if (!next) return growth.at.reset();
  if (is_new || !growth.at) growth.at = self->clock().now() + next->after;
}

void TrainerState::watch_growth() {
  plan_growth(false);
  if (!growth.at) return;
  const auto left = std::max(caf::actor_clock::duration_type{0}, *growth.at - self->clock().now());
  self->delayed_send(self, std::chrono::ceil<std::chrono::milliseconds>(left), GrowthDue{attempt});
}

void TrainerState::try_to_grow(Attempt due) {
  const bool is_busy = own_error || stop_requests > 0 || is_resizing() || growth.is_looking;
  const bool is_due = growth.at && self->clock().now() >= *growth.at;  // a resize may have put it off since
  if (due != attempt || !group || phase != Phase::Running || is_busy || !is_due) return;
  const auto next = next_growth(world_size, wanted_by_user(), growth.failed_tries, setup.scaling);
  if (!next) return;
  note({{"event", "growth_tried"}, {"places", next->places}, {"reason", next->reason}});
  growth.is_looking = true;
  self->send(group, FindPlaces{attempt, next->places});
}

void TrainerState::places_found(const PlacesFound& news) {
  if (!std::exchange(growth.is_looking, false) || own_error || stop_requests > 0 || is_resizing()) return;
  const auto decision = after_places_found(world_size, wanted_by_user(), news.count, news.text);
  note({{"event", "growth_decided"}, {"world_size", decision.world_size}, {"reason", decision.reason}});
  if (decision.world_size == world_size) {
    ++growth.failed_tries;
    plan_growth(true);
    return watch_growth();
  }
  wanted_world_size = decision.world_size;
  growth.is_agreed = true;
  self->send(group, StopGroup{attempt, true, true});
}

void TrainerState::take_wanted_size() {
  growth.grew_from = std::exchange(growth.is_agreed, false) && wanted_world_size > world_size ? world_size : 0;
  world_size = wanted_world_size;
}

bool TrainerState::take_growth_back(bool got_on) {
  const int grew_from = std::exchange(growth.grew_from, 0);
  if (got_on && grew_from > 0) growth.failed_tries = 0;
  if (!last_error) return false;
  const auto decision = after_grown_attempt_failed(grew_from, world_size, got_on, last_error->message);
  if (!decision) return false;
  ++growth.failed_tries;
  world_size = wanted_world_size = decision->world_size;
  growth.is_agreed = false;
  plan_growth(true);
  verdict = {NextStep::Retry, decision->reason};
  return true;
}

}  // namespace troupe

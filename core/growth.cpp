#include <troupe/growth.hpp>

#include <algorithm>

namespace troupe {

namespace {

constexpr int most_doublings = 6;

std::string ranks(int count) { return std::to_string(count) + (count == 1 ? " rank" : " ranks"); }

}  // namespace

std::optional<GrowthTry> next_growth(int world_size, int wanted, int failed_tries, const ScalingConfig& scaling) {
  if (scaling.min_workers == 0 || scaling.grow_after.count() == 0 || world_size >= wanted) return std::nullopt;
  GrowthTry next;
  next.places = wanted - world_size;
  next.after = scaling.grow_after * (1 << std::clamp(failed_tries, 0, most_doublings));
  next.reason = ranks(world_size) + " of " + std::to_string(wanted) + " run (ScalingConfig.grow_after)";
  if (failed_tries > 0) next.reason += ", tries in vain: " + std::to_string(failed_tries);
  return next;
}

GrowthDecision after_places_found(int world_size, int wanted, int found, const std::string& why) {
  const int next = std::min(wanted, world_size + std::max(0, found));
  if (next <= world_size) return {world_size, "no place for another rank" + (why.empty() ? "" : ": " + why)};
  auto reason = "going on with " + ranks(next) + " instead of " + std::to_string(world_size) + " from the next step boundary on";
  if (next < wanted && !why.empty()) reason += "; not with " + std::to_string(wanted) + ": " + why;
  return {next, reason};
}

std::optional<GrowthDecision> after_grown_attempt_failed(int grew_from, int world_size, bool got_on, const std::string& error) {
  if (grew_from <= 0 || grew_from >= world_size || got_on) return std::nullopt;
  return GrowthDecision{grew_from, "with " + ranks(world_size) + " it got nowhere (" + error + "): going on with " + std::to_string(grew_from) +
                                       " as before; this counts as no failure"};
}

}  // namespace troupe

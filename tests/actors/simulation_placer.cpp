#include "simulation_placer.hpp"

#include "simulation_process.hpp"

namespace troupe::sim {

using namespace std::chrono_literals;

namespace {

class SimulatedPlacer final : public RankPlacer {
 public:
  SimulatedPlacer(Stage& stage, const RankFaults& faults, const StartGroup& group)
      : stage_(stage), faults_(faults), stop_grace_(group.run.stop_grace), gathering_(std::make_shared<Gathering>(group.scaling.num_workers)) {
    ++stage_.placers;
  }
  ~SimulatedPlacer() override { --stage_.placers; }

  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    if (stage_.world.random.chance(faults_.start_failure_percent)) {
      throw Failure{Errc::StartFailed, "no room for rank " + std::to_string(spec.rank)};
    }
    const auto to = caf::actor_cast<caf::actor>(group);
    const auto fate = draw_fate(spec);
    if (spec.scaling.placement == Placement::Threads) {
      return spawn_rank(group->system(), simulated_worker(stage_, gathering_, fate), nullptr, to);
    }
    return spawn_simulated_process(group->system(), stage_, {spec, fate, gathering_, stop_grace_, faults_.slowest_link, faults_.link_percent}, to);
  }
  void abort(const std::string& reason) noexcept override { gathering_->abort(reason); }

  // As a process that starts: after a while it is there, or it is not, or nothing is ever heard of it.
  void find_places(int count, Found done) override {
    auto& random = stage_.world.random;
    if (random.chance(10)) return;
    int found = 0;
    for (int i = 0; i < count; ++i) found += random.chance(100 - faults_.start_failure_percent);
    stage_.world.after(random.time(0ms, 100ms), [this_found = found, done = std::move(done)] { done(this_found, "no room"); });
  }

 private:
  Fate draw_fate(const RunRank& spec) {
    auto& random = stage_.world.random;
    if (!random.chance(faults_.percent)) return {};
    using Kind = Fate::Kind;
    const Kind kinds[] = {Kind::Throws, Kind::Throws, Kind::Hangs, Kind::ReturnsEarly, Kind::NeverStarts, Kind::StartsLate, Kind::Dies, Kind::IsSlow};
    auto kind = kinds[random.between(0, 7)];
    if (kind == Kind::Dies && spec.scaling.placement == Placement::Threads) kind = Kind::Throws;
    return {kind, random.between(0, stage_.training.num_steps)};
  }

  Stage& stage_;
  const RankFaults faults_;
  const std::chrono::milliseconds stop_grace_;
  std::shared_ptr<Gathering> gathering_;
};

}  // namespace

std::unique_ptr<RankPlacer> make_simulated_placer(Stage& stage, const RankFaults& faults, const StartGroup& group) {
  return std::make_unique<SimulatedPlacer>(stage, faults, group);
}

}  // namespace troupe::sim

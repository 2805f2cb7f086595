#include <sstream>

#include "simulation.hpp"

namespace troupe::sim {

using namespace std::chrono_literals;

namespace {

void draw_run(Scenario& scenario, Random& random) {
  auto& run = scenario.run;
  run.name = "run";
  run.storage_path = "/runs";
  run.start_timeout = 10s;
  run.collective_timeout = 15s;
  run.stop_grace = 2s;
  run.step_timeout = std::chrono::seconds{random.between(20, 40)};  // more than anybody's honest wait
  run.failure.snapshot_every = random.chance(50) ? random.between(1, 3) : 0;
  const int failures[] = {0, 1, 3, -1};
  run.failure.crash_loop_limit = random.between(2, 6);
  run.failure.max_failures = failures[random.between(0, 3)];
  if (random.chance(60)) run.checkpoint.num_to_keep = random.between(1, 3);
  if (random.chance(40)) run.checkpoint.checkpoint_score_attribute = "loss";
  if (random.chance(50)) run.checkpoint.checkpoint_score_order = "min";
  scenario.scaling.num_workers = random.between(1, 4);
  scenario.scaling.placement = random.chance(50) ? Placement::Threads : Placement::Processes;
}

void draw_training(Scenario& scenario, Random& random) {
  auto& training = scenario.training;
  training.seed = random.next();
  training.num_steps = random.between(1, 10);
  training.checkpoint_every = random.between(1, 4);
  training.saves = static_cast<Saves>(random.between(0, 2));
  training.pending = random.chance(50);
  training.report_percent = random.between(0, 100);
  training.barrier_percent = random.between(0, 60);
  training.longest_step = random.time(1ms, 200ms);
}

void draw_sizes(Scenario& scenario, Random& random) {
  if (!random.chance(30)) return;
  const int most = scenario.scaling.num_workers;
  scenario.scaling.min_workers = random.between(1, most);
  scenario.scaling.grow_after = random.chance(70) ? std::chrono::milliseconds{random.between(20, 300)} : 0ms;
  if (most > 1 && random.chance(50)) {  // one that shrinks, and has the time to grow
    scenario.scaling.min_workers = 1;
    scenario.training.num_steps = random.between(20, 60);
    scenario.rank_faults.start_failure_percent = random.between(10, 40);
    scenario.run.failure.max_failures = -1;
  }
  for (int i = random.between(0, 3); i > 0; --i) scenario.resizes.emplace_back(random.time(0ms, 2s), random.between(1, most));
}

void draw_faults(Scenario& scenario, Random& random) {
  if (random.chance(70)) scenario.rank_faults.percent = random.between(5, 40);
  if (scenario.rank_faults.start_failure_percent == 0 && random.chance(10)) scenario.rank_faults.start_failure_percent = random.between(1, 30);
  if (random.chance(30)) scenario.rank_faults.link_percent = random.between(1, 30);
  if (random.chance(40)) scenario.disk_faults.error_percent = random.between(5, 50);
  if (random.chance(40)) scenario.disk_faults.slow_percent = random.between(5, 50);
  if (random.chance(10)) scenario.disk_faults.report_error_percent = random.between(1, 20);
  scenario.disk_faults.slowest = random.time(20ms, 5s);
  if (random.chance(30)) scenario.write_error_percent = random.between(1, 30);
  if (random.chance(40)) scenario.late_percent = random.between(1, 20);
  if (random.chance(25)) {
    scenario.stop = random.time(0ms, 3s);
    if (random.chance(50)) scenario.second_stop = random.time(0ms, 4s);
  }
  if (random.chance(8)) scenario.exit = random.time(0ms, 3s);
  if (random.chance(20)) scenario.crash = random.time(0ms, 4s), scenario.max_crashes = random.between(1, 3);
  scenario.preempts = random.chance(30);
  if (random.chance(5)) scenario.run.time_limit = std::chrono::duration_cast<std::chrono::milliseconds>(random.time(10ms, 3s));
  if (random.chance(15)) scenario.run.failure.failure_window = 2s;
  if (random.chance(30)) {
    scenario.run.failure.max_rank_failures = random.between(0, 2);
    if (random.chance(60)) scenario.run.failure.max_group_failures = random.between(0, 2);
  }
  scenario.replays = random.chance(40);
  scenario.meddles = random.chance(10);
}

}  // namespace

Scenario draw_scenario(std::uint64_t seed) {
  Random random{seed};
  Scenario scenario;
  scenario.seed = seed;
  scenario.calm = random.chance(8);
  draw_run(scenario, random);
  draw_training(scenario, random);
  scenario.rank_faults.slowest_link = random.time(0ms, random.chance(20) ? 500ms : 5ms);
  if (!scenario.calm) {
    draw_sizes(scenario, random);
    draw_faults(scenario, random);
  }
  return scenario;
}

std::string describe(const Scenario& scenario) {
  std::ostringstream text;
  const auto ms = [](Duration time) { return std::to_string(time / 1ms) + " ms"; };
  const char* saves[] = {"by rank 0", "by each rank", "by all ranks in one directory"};
  text << scenario.scaling.num_workers << (scenario.scaling.placement == Placement::Threads ? " threads" : " processes") << ", max_failures "
       << scenario.run.failure.max_failures << ", " << scenario.training.num_steps << " steps, a checkpoint every "
       << scenario.training.checkpoint_every << ' ' << saves[static_cast<int>(scenario.training.saves)]
       << (scenario.training.pending ? ", asynchronous" : "");
  if (scenario.run.checkpoint.num_to_keep) text << ", keep " << *scenario.run.checkpoint.num_to_keep;
  if (scenario.run.failure.snapshot_every > 0) text << ", a snapshot every " << scenario.run.failure.snapshot_every << " steps";
  if (scenario.calm) text << ", calm";
  text << "; faults in %: ranks " << scenario.rank_faults.percent << ", starts " << scenario.rank_faults.start_failure_percent << ", links "
       << scenario.rank_faults.link_percent << ", disk " << scenario.disk_faults.error_percent << ", slow disk " << scenario.disk_faults.slow_percent
       << ", reports " << scenario.disk_faults.report_error_percent << ", parts " << scenario.write_error_percent << ", late " << scenario.late_percent;
  if (scenario.stop) text << "; stop at " << ms(*scenario.stop);
  if (scenario.stop && scenario.second_stop) text << " and after " << ms(*scenario.second_stop);
  if (scenario.preempts) text << " (a preemption)";
  if (scenario.run.time_limit.count() > 0) text << "; time limit " << scenario.run.time_limit.count() << " ms";
  if (scenario.scaling.min_workers > 0) text << "; at least " << scenario.scaling.min_workers << ", growing after " << scenario.scaling.grow_after.count() << " ms";
  if (scenario.run.failure.max_rank_failures >= 0) {
    text << "; max_rank_failures " << scenario.run.failure.max_rank_failures << ", max_group_failures " << scenario.run.failure.max_group_failures;
  }
  for (const auto& [time, size] : scenario.resizes) text << ", resized to " << size << " at " << ms(time);
  if (scenario.exit) text << "; exit at " << ms(*scenario.exit);
  if (scenario.crash) text << "; " << scenario.max_crashes << " crashes after " << ms(*scenario.crash);
  if (scenario.replays) text << "; old messages come again";
  if (scenario.meddles) text << "; an actor is told to exit";
  return text.str();
}

}  // namespace troupe::sim

// The real Trainer, WorkerGroup, CheckpointKeeper and Rank actors on one thread under virtual time: what a seed draws goes
// wrong, and invariants are checked after every message (docs/decisions/0019-simulated-runs.md).
//
//   TROUPE_SIM_SEEDS=10000 actors_simulation_test    more seeds, from TROUPE_SIM_FIRST (1) on
//   TROUPE_SIM_SEED=17 actors_simulation_test        one seed, with its last messages
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>

#include "simulation.hpp"

namespace troupe::sim {
namespace {

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

const bool one_seed = std::getenv("TROUPE_SIM_SEED") != nullptr;
const std::uint64_t first_seed = number_from(one_seed ? "TROUPE_SIM_SEED" : "TROUPE_SIM_FIRST", 1);
const std::uint64_t num_seeds = one_seed ? 1 : number_from("TROUPE_SIM_SEEDS", 2000);

std::string reproduction(std::uint64_t seed) {
  const auto again = simulate(seed, Bug::None, true);
  std::string text = "seed " + std::to_string(seed) + ": " + describe(draw_scenario(seed)) + "\n";
  for (const auto& line : again.trace) text += line + "\n";
  return text + "TROUPE_SIM_SEED=" + std::to_string(seed) + " ctest --test-dir build/release -R Simulation.KeepsItsPromises --output-on-failure";
}

TEST(Simulation, KeepsItsPromises) {
  Findings all;
  int failed = 0;
  for (std::uint64_t seed = first_seed; seed < first_seed + num_seeds; ++seed) {
    const auto found = simulate(seed);
    if (found.violation && ++failed <= 5) ADD_FAILURE() << *found.violation << "\n" << reproduction(seed);
    all.num_messages += found.num_messages;
    all.num_drivers += found.num_drivers;
    all.num_attempts += found.num_attempts;
    all.num_growths += found.num_growths;
    all.num_reports += found.num_reports;
    all.num_checkpoints += found.num_checkpoints;
    all.num_ok += found.num_ok;
    all.num_stopped += found.num_stopped;
  }
  std::cout << num_seeds << " seeds, " << failed << " failed: " << all.num_drivers << " drivers, " << all.num_attempts << " attempts, " << all.num_growths << " of them grew, "
            << all.num_ok << " runs fine, " << all.num_stopped << " stopped, " << all.num_reports << " reports, " << all.num_checkpoints
            << " checkpoints kept, " << all.num_messages << " messages\n";
  EXPECT_EQ(failed, 0);
  if (num_seeds >= 1000) {
    EXPECT_GT(all.num_growths, 10) << "no run grows by itself";
  }
}

TEST(Simulation, RepeatsItselfFromItsSeed) {
  for (std::uint64_t seed = first_seed; seed < first_seed + 10; ++seed) {
    const auto once = simulate(seed), again = simulate(seed);
    EXPECT_EQ(once.fingerprint, again.fingerprint) << "seed " << seed;
    EXPECT_EQ(once.num_messages, again.num_messages) << "seed " << seed;
  }
}

/// How many seeds it takes until a planted bug is found, and as what.
std::string find(Bug bug, const std::string& expected) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    const auto found = simulate(seed, bug);
    if (!found.violation) continue;
    std::cout << "found at seed " << seed << ": " << *found.violation << "\n";
    return found.violation->find(expected) == std::string::npos ? "found as something else: " + *found.violation : "";
  }
  return "not found";
}

TEST(Simulation, FindsAnAcknowledgementThatIsLost) { EXPECT_EQ(find(Bug::LostAcknowledgement, "would not survive"), ""); }
TEST(Simulation, FindsWhatAStaleAttemptReports) { EXPECT_EQ(find(Bug::StaleAttempt, "is really of attempt"), ""); }
TEST(Simulation, FindsACommitThatIsMadeTwice) { EXPECT_EQ(find(Bug::DoubleCommit, "is committed twice"), ""); }

}  // namespace
}  // namespace troupe::sim

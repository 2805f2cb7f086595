// Thirty training steps of a small BERT against curves of PyTorch and Accelerate, on every kind of rank.
#include "comm_ranks.hpp"
#include "device_context.hpp"
#include "fake_context.hpp"
#include "traj_run.hpp"

#include <troupe/c10d.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

namespace troupe {
namespace {

namespace ranks = testing_ranks;
using test::TrajectoryMode;

std::filesystem::path curve(const std::string& mode) {
  const char* const other = std::getenv("TROUPE_GOLDEN");
  return std::filesystem::path{other ? other : TROUPE_TEST_GOLDEN} / "c_traj" / ("curve_" + mode + ".json");
}

/// Trains as one rank of `group` and compares what came out.
void train_and_compare(Communicator& group, const std::string& mode_name) {
  test::FakeContext context{group};
  const auto mode = test::read_mode(curve(mode_name));
  test::compare_with_golden(test::train(context, mode), mode);
}

/// The same on streams that are late.
void train_on_async_host(Communicator& group, const std::string& mode_name) {
  const auto context = test::async_host_context(group);
  const auto mode = test::read_mode(curve(mode_name));
  test::compare_with_golden(test::train(*context, mode), mode);
}

/// A private directory that goes away.
struct Directory {
  std::filesystem::path path;
  Directory() {
    char name[] = "/tmp/troupe-traj-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Directory() { std::filesystem::remove_all(path); }
};

struct Traj : testing::TestWithParam<std::string> {
  void on_two(const std::string& implementation, const std::string& place = "") {
    ranks::Ranks group{implementation, 2, "train", GetParam(), std::chrono::seconds{30}, place};
    EXPECT_EQ(ranks::failures(group.join()), "");
  }
};

TEST_P(Traj, OneRankFollowsTheReference) {
  auto self = self_communicator();
  train_and_compare(*self, GetParam());
}

TEST_P(Traj, TwoThreadsFollowTheReference) { on_two("threads"); }

TEST_P(Traj, TwoProcessesFollowTheReference) { on_two("shared_memory"); }

TEST_P(Traj, TwoProcessesOverGlooFollowTheReference) {
  const Directory directory;
  on_two("gloo", directory.path.string());
}

INSTANTIATE_TEST_SUITE_P(Modes, Traj, testing::ValuesIn(test::trajectory_modes()), [](const auto& mode) { return mode.param; });

std::vector<std::string> sharded_modes() {
  auto modes = test::trajectory_modes();
  std::erase_if(modes, [](const auto& mode) { return !mode.starts_with("zero") && !mode.starts_with("fsdp"); });
  return modes;
}

struct TrajOnAsyncHost : testing::TestWithParam<std::string> {};
TEST_P(TrajOnAsyncHost, TwoThreadsFollowTheReference) {
  ranks::Ranks group{"threads", 2, "train_on_async_host", GetParam()};
  EXPECT_EQ(ranks::failures(group.join()), "");
}
INSTANTIATE_TEST_SUITE_P(Modes, TrajOnAsyncHost, testing::ValuesIn(sharded_modes()), [](const auto& mode) { return mode.param; });

TEST(TrajData, HoldsCurvesToCompareWith) { EXPECT_THAT(test::trajectory_modes(), testing::Not(testing::IsEmpty())); }

TEST(TrajWorlds, OneToFourRanksWithOneGlobalBatchGiveOneLossCurve) {
  auto mode = test::read_mode(curve("single"));
  mode.batch_size = 12;  // divides by 1, 2, 3 and 4
  std::vector<double> reference;
  for (int size = 1; size <= 4; ++size) {
    std::vector<double> losses;
    test::run_ranks(size, [&](TrainContext& context) {
      const auto trajectory = test::train(context, mode);
      if (context.world_rank() == 0) losses = trajectory.losses;
    });
    if (size == 1) reference = losses;
    ASSERT_EQ(losses.size(), reference.size());
    for (std::size_t s = 0; s < losses.size(); ++s) EXPECT_NEAR(losses[s], reference[s], 1e-5) << size << " ranks, step " << s;
  }
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  auto& registry = troupe::testing_ranks::registry();
  registry.bodies["train"] = troupe::train_and_compare;
  registry.bodies["train_on_async_host"] = troupe::train_on_async_host;
  registry.joins["gloo"] = [](const std::string& place, int rank, int size, std::chrono::milliseconds timeout) {
    return troupe::make_gloo_communicator(rank, size, place, timeout);
  };
  return troupe::testing_ranks::main_of_ranks(argc, argv);
}

// Every strategy, number of ranks, accumulation, precision, offload and activation checkpointing together, bit for bit.
#include "comm_ranks.hpp"
#include "fake_context.hpp"
#include "shard_combinations.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>

namespace troupe {
namespace {

namespace ranks = testing_ranks;
using test::Combination;

/// What one process makes of it, computed once.
const test::ShardResult& reference(const Combination& c) {
  static std::mutex mutex;
  static std::map<std::string, test::ShardResult> known;
  const std::scoped_lock lock{mutex};
  const auto found = known.find(c.reference());
  if (found != known.end()) return found->second;
  return known.emplace(c.reference(), test::train_alone(test::case_from(c.text()), c.ranks)).first->second;
}

std::string title(const Combination& c, const std::string& medium) { return std::to_string(c.ranks) + " " + medium + ", " + c.text(); }

/// Trains one after the other in one group. A difference is noted and the next one tried; what throws ends all.
void train_all(Communicator& group, const std::vector<Combination>& combinations, const std::string& medium) {
  test::FakeContext context{group};
  std::string differences;
  for (const auto& c : combinations) {
    try {
      const auto ours = test::train_sharded(context, test::case_from(c.text()));
      if (group.rank() != 0) continue;
      try {
        test::expect_equal(ours, reference(c));
      } catch (const std::exception& error) {
        differences += title(c, medium) + ":\n" + error.what();
      }
    } catch (const std::exception& error) {
      group.abort(error.what());
      throw std::runtime_error{title(c, medium) + ": " + error.what() + "\n" + differences};
    }
  }
  if (!differences.empty()) throw std::runtime_error(differences);
}

std::vector<Combination> chosen(int size, const std::string& precision, bool every) {
  auto all = test::all_combinations(size, precision);
  return every ? all : test::covering(all);
}

/// "2 bf16 every": of process ranks.
void train_of_processes(Communicator& group, const std::string& argument) {
  std::istringstream words{argument};
  int size = 0;
  std::string precision, amount;
  words >> size >> precision >> amount;
  train_all(group, chosen(size, precision, amount == "every"), "processes");
}

/// Ranks and precision.
struct ShardSweep : testing::TestWithParam<std::tuple<int, std::string>> {
  void SetUp() override { began_ = std::chrono::steady_clock::now(); }
  void tell(std::size_t count) const {
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - began_;
    std::cout << count << " combinations, " << time.count() / static_cast<double>(count) << " ms each\n";
  }
  void on_processes(bool every) const {
    const auto& [size, precision] = GetParam();
    ranks::Ranks group{"shared_memory", size, "sweep", std::to_string(size) + " " + precision + (every ? " every" : " covering")};
    EXPECT_EQ(ranks::failures(group.join()), "");
    tell(chosen(size, precision, every).size());
  }

 private:
  std::chrono::steady_clock::time_point began_;
};

TEST_P(ShardSweep, ThreadsEqualOneProcess) {
  const auto& [size, precision] = GetParam();
  const auto all = chosen(size, precision, true);
  for (const auto& c : all) {
    const auto& expected = reference(c);
    try {
      test::run_ranks(size, [&](TrainContext& context) {
        const auto ours = test::train_sharded(context, test::case_from(c.text()));
        if (context.world_rank() == 0) test::expect_equal(ours, expected);
      });
    } catch (const std::exception& error) {
      ADD_FAILURE() << title(c, "threads") << ": " << error.what();
    }
  }
  tell(all.size());
}

TEST_P(ShardSweep, SomeProcessesEqualOneProcess) { on_processes(false); }
TEST_P(ShardSweep, AllProcessesEqualOneProcessSlowly) { on_processes(true); }

INSTANTIATE_TEST_SUITE_P(All, ShardSweep, testing::Combine(testing::Values(1, 2, 3, 4), testing::Values("fp32", "bf16", "fp16")),
                         [](const auto& test) { return std::to_string(std::get<0>(test.param)) + "_" + std::get<1>(test.param); });

TEST(ShardSweepItself, SkipsAStepOfEveryRunInFp16AndTakesTheOthers) {
  for (int size = 1; size <= 4; ++size) {
    for (const auto& c : test::all_combinations(size, "fp16")) {
      const auto& norms = reference(c).norms;
      const auto skipped = std::count_if(norms.begin(), norms.end(), [](double norm) { return std::isnan(norm); });
      EXPECT_THAT(skipped, testing::AllOf(testing::Ge(1), testing::Le(4))) << title(c, "alone");
    }
  }
}

TEST(ShardSweepItself, HasOneReferenceForAllShardingWithoutAccumulation) {
  for (const std::string precision : {"fp32", "bf16", "fp16"}) {
    const Combination zero1{"zero1", 3, 1, precision, "none", false}, zero3{"zero3", 3, 1, precision, "none", false};
    EXPECT_NE(zero1.reference(), zero3.reference());
    EXPECT_NO_THROW(test::expect_equal(reference(zero1), reference(zero3))) << precision;
  }
}

TEST(ShardSweepItself, TellsRoundingsApart) {
  const auto result_of = [](const std::string& precision) { return reference({"zero3", 2, 2, precision, "none", false}); };
  EXPECT_ANY_THROW(test::expect_equal(result_of("bf16"), result_of("fp32")));
  auto moved = result_of("fp32");
  EXPECT_NO_THROW(test::expect_equal(moved, result_of("fp32")));
  moved.parameters.at("block1.up.weight") = moved.parameters.at("block1.up.weight").clone();
  *static_cast<std::uint32_t*>(moved.parameters.at("block1.up.weight").data_ptr()) ^= 1;
  EXPECT_ANY_THROW(test::expect_equal(moved, result_of("fp32")));
}

TEST(ShardSweepItself, ACoveringPartHasEveryPairAndIsSmaller) {
  const auto all = test::all_combinations(4, "fp32");
  const auto part = test::covering(all);
  EXPECT_LT(part.size(), all.size() / 5);
  for (const auto& c : all) {
    EXPECT_TRUE(std::any_of(part.begin(), part.end(), [&](const auto& p) { return p.strategy == c.strategy && p.offload == c.offload; })) << c.text();
    EXPECT_TRUE(std::any_of(part.begin(), part.end(), [&](const auto& p) { return p.accumulation == c.accumulation && p.recompute == c.recompute; }));
  }
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::testing_ranks::registry().bodies["sweep"] = troupe::train_of_processes;
  return troupe::testing_ranks::main_of_ranks(argc, argv);
}

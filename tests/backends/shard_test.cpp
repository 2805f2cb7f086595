// Every strategy against one process, bit for bit, on threads and on processes.
#include "comm_ranks.hpp"
#include "fake_context.hpp"
#include "shard_run.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace troupe {
namespace {

namespace ranks = testing_ranks;

void train_and_compare(Communicator& group, const std::string& text) {
  test::FakeContext context{group};
  const auto c = test::case_from(text);
  const auto ours = test::train_sharded(context, c);
  if (group.rank() == 0) test::expect_equal(ours, test::train_alone(c, group.size()));
}

/// Ranks and case.
struct Sharded : testing::TestWithParam<std::tuple<int, std::string>> {
  void on(const std::string& implementation) {
    const auto& [size, text] = GetParam();
    ranks::Ranks group{implementation, size, "train", text};
    EXPECT_EQ(ranks::failures(group.join()), "");
  }
};

TEST_P(Sharded, ThreadsEqualOneProcess) { on("threads"); }

struct ShardedProcesses : Sharded {};
TEST_P(ShardedProcesses, EqualOneProcess) { on("shared_memory"); }

std::string name_of(const testing::TestParamInfo<std::tuple<int, std::string>>& info) {
  auto name = std::to_string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
  for (auto& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

const auto kAll = testing::Values("zero1", "zero2", "zero3", "zero3,reshard=0", "zero1,accumulation=2", "zero2,accumulation=4",
                                  "zero3,accumulation=2", "zero1,clip=0.5", "zero2,clip=0.5", "zero3,clip=0.5,accumulation=2",
                                  "zero2,bucket=20", "zero3,persist=20", "zero1,recompute", "zero3,recompute",
                                  "zero3,recompute,to_host,accumulation=2", "zero2,recompute,clip=0.5", "zero3,recompute,nowrap",
                                  "zero3,recompute,reshard=0", "zero3,nowrap", "zero3,prefetch=0", "zero3,zeroed,accumulation=2",
                                  "zero2,recompute,accumulation=2", "zero1,offload=host", "zero3,offload=disk,accumulation=2",
                                  "replicate", "replicate,accumulation=2,clip=0.5", "zero3,debug");
INSTANTIATE_TEST_SUITE_P(One, Sharded, testing::Combine(testing::Values(1), testing::Values("zero1", "zero2", "zero3,clip=0.5,accumulation=2")), name_of);
INSTANTIATE_TEST_SUITE_P(Two, Sharded, testing::Combine(testing::Values(2), kAll), name_of);
INSTANTIATE_TEST_SUITE_P(ThreeAndFour, Sharded,
                         testing::Combine(testing::Values(3, 4), testing::Values("zero1,accumulation=2", "zero2,clip=0.5", "zero3", "zero3,accumulation=2")), name_of);
INSTANTIATE_TEST_SUITE_P(Hybrid, Sharded, testing::Combine(testing::Values(4), testing::Values("zero3,group=2", "zero2,group=2,clip=0.5", "zero3,group=1")), name_of);
INSTANTIATE_TEST_SUITE_P(Processes, ShardedProcesses,
                         testing::Combine(testing::Values(2, 3), testing::Values("zero1", "zero2,accumulation=2", "zero3,clip=0.5", "zero3,reshard=0")), name_of);

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::testing_ranks::registry().bodies["train"] = troupe::train_and_compare;
  return troupe::testing_ranks::main_of_ranks(argc, argv);
}

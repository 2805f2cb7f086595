// The contract of Communicator between hosts, which are addresses of loopback here.
#include "host_ranks.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <thread>

namespace troupe {
namespace {

using namespace testing_ranks;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;

/// Ranks of each host; whether they meet in shared memory.
class HostContract : public testing::TestWithParam<std::tuple<const char*, bool>> {
 protected:
  std::string run(const std::string& body, const std::string& argument = "") {
    return failures(run_on_hosts(std::get<0>(GetParam()), std::get<1>(GetParam()), body, argument));
  }
};

TEST_P(HostContract, CombinesNothing) { EXPECT_EQ(run("collectives", "0"), ""); }
TEST_P(HostContract, CombinesOneElement) { EXPECT_EQ(run("collectives", "1"), ""); }
TEST_P(HostContract, CombinesAnOddNumberOfElements) { EXPECT_EQ(run("collectives", "1027"), ""); }
TEST_P(HostContract, CombinesManyElements) { EXPECT_EQ(run("collectives", "100003"), ""); }
TEST_P(HostContract, KeepsManyCollectivesUnderWay) { EXPECT_EQ(run("overlap"), ""); }
TEST_P(HostContract, ScattersAndGathersInPlace) { EXPECT_EQ(run("in_place"), ""); }
TEST_P(HostContract, AddsTheRanksOfAHostThenTheHosts) { EXPECT_EQ(run("bitwise_of_hosts", std::get<0>(GetParam())), ""); }
TEST_P(HostContract, ReducesUnevenPartsToTheirOwners) { EXPECT_EQ(run("owners"), ""); }
TEST_P(HostContract, HandsOutSumsOf16BitFloatsUnrounded) { EXPECT_EQ(run("widened"), ""); }
TEST_P(HostContract, SplitsIntoGroupsOfAPartOfTheRanks) { EXPECT_EQ(run("split", "2"), ""); }
TEST_P(HostContract, CountsWhatItSends) { EXPECT_EQ(run("traffic"), ""); }
TEST_P(HostContract, RecordsItsCollectives) { EXPECT_EQ(run("record", "30"), ""); }
TEST_P(HostContract, RefusesWrongArguments) { EXPECT_EQ(run("bad_arguments"), ""); }

INSTANTIATE_TEST_SUITE_P(Shapes, HostContract,
                         testing::Combine(testing::Values("1,1", "2,2", "3", "2,2,2", "3,1", "1,2,2", "1,1,1,1"), testing::Bool()), [](const auto& i) {
                           std::string name = std::get<0>(i.param);
                           for (auto& c : name) c = c == ',' ? '_' : c;
                           return name + (std::get<1>(i.param) ? "_memory" : "_threads");
                         });

/// Bits depend on the order of additions.
void bitwise_of_hosts(Communicator& group, const std::string& sizes) {
  for (const std::size_t n : {std::size_t{100}, std::size_t{5'000}, std::size_t{70'003}, std::size_t{600'011}}) {  // beside the header, one lane, all lanes, in segments
    const auto at = [](int rank, std::size_t i) { return static_cast<float>((i * 2654435761U + static_cast<std::size_t>(rank) * 40503U) % 65521U) / (7.0F + static_cast<float>(rank)); };
    std::vector<float> mine(n);
    for (std::size_t i = 0; i < n; ++i) mine[i] = at(group.rank(), i);
    group.all_reduce({mine.data(), n * 4, DType::F32}, ReduceOp::Sum).wait().or_throw();
    for (std::size_t i = 0; i < n; ++i) {
      float sum = 0;
      int rank = 0;
      for (const int ranks : numbers_of(sizes)) {
        float part = at(rank++, i);
        for (int r = 1; r < ranks; ++r) part += at(rank++, i);
        sum = rank == ranks ? part : sum + part;
      }
      TROUPE_CHECK(std::bit_cast<std::uint32_t>(sum) == std::bit_cast<std::uint32_t>(mine[i]), std::to_string(n) + " at " + std::to_string(i));
    }
  }
}

void expect_rank_1_named(const std::vector<RankResult>& results) {
  EXPECT_EQ(failures(results), "");
  for (const auto& result : results)
    EXPECT_THAT(result.text, HasSubstr("all_reduce #2 of `encoder.5` (sum, F32 x 8): rank 1 did not come within 200 ms (waiting: 0); rank 1's last was "
                                       "barrier #1, finished 0."));
}

TEST(Hosts, TheDeadlineNamesARankOfAnotherHost) { expect_rank_1_named(run_on_hosts("1,1", false, "deadline")); }
TEST(Hosts, TheDeadlineNamesARankOfTheSameHostOnAllHosts) { expect_rank_1_named(run_on_hosts("2,2", true, "deadline")); }

TEST(Hosts, AMismatchAcrossHostsNamesEachRanksCall) {
  const auto results = run_on_hosts("1,1,1", false, "mismatch");
  EXPECT_EQ(failures(results), "");
  for (const auto& result : results)
    EXPECT_EQ(result.text, "ranks disagree: rank 1 is at broadcast #2 of `encoder.6` (from rank 0, F32 x 4); ranks 0, 2 are at all_reduce #2 of "
                           "`encoder.5` (sum, F32 x 8)\n");
}

TEST(Hosts, AMismatchInsideAHostIsToldToAll) {
  const auto results = run_on_hosts("2,2", false, "mismatch");
  EXPECT_EQ(failures(results), "");
  for (const auto& result : results)
    EXPECT_THAT(result.text, AllOf(HasSubstr("rank 1 is at broadcast #2 of `encoder.6` (from rank 0, F32 x 4)"),
                                   HasSubstr("at all_reduce #2 of `encoder.5` (sum, F32 x 8)")));
}

TEST(Hosts, TheSameCallUnderAnotherLabelIsAMismatch) {
  for (const auto* sizes : {"1,1", "2,1"}) {
    const auto results = run_on_hosts(sizes, false, "other_label");
    EXPECT_EQ(failures(results), "");
    for (const auto& result : results) EXPECT_THAT(result.text, HasSubstr("rank 1 is at all_reduce #2 of `encoder.6` (sum, F32 x 8)"));
  }
}

TEST(Hosts, AnAbortFreesEveryRankWithin100Milliseconds) {
  for (const auto* sizes : {"1,1", "2,2", "3,1", "1,2,2"}) expect_freed_in_time([&] { return run_on_hosts(sizes, true, "abort_from_rank_0"); });
}

TEST(Hosts, AnAbortFreesRanksThatWaitInASplitGroupWithin100Milliseconds) {
  for (const auto* sizes : {"2,2", "1,2,1"}) expect_freed_in_time([&] { return run_on_hosts(sizes, false, "abort_parent"); });
}

TEST(Hosts, ADeadlineNamesRanksAsInTheFirstGroup) {
  const auto results = run_on_hosts("2,2", false, "lost_in_split");
  EXPECT_EQ(failures(results), "");
  EXPECT_THAT(results[1].text, HasSubstr("barrier #2 in the group of ranks 1, 3: rank 3 did not come within 200 ms (waiting: 1); rank 3's last "
                                         "was barrier #1, finished"));
}

TEST(Hosts, SendsEachByteOncePerHost) {
  const auto results = run_on_hosts("2,2", false, "wire");
  EXPECT_EQ(failures(results), "");
}

void wire(Communicator& group, const std::string&) {
  constexpr std::size_t bytes = std::size_t{8} << 20;
  std::vector<float> values(bytes / 4, 1.0F);
  std::vector<std::int64_t> sent(static_cast<std::size_t>(group.size()));
  group.barrier().wait().or_throw();
  const auto before = wire_bytes(group);
  group.all_reduce({values.data(), bytes, DType::F32}, ReduceOp::Sum).wait().or_throw();
  const auto mine = static_cast<std::int64_t>(wire_bytes(group) - before);
  group.all_gather({&mine, sizeof mine, DType::I64}, {sent.data(), sent.size() * sizeof mine, DType::I64}).wait().or_throw();
  const auto of_host = sent[0] + sent[1];
  TROUPE_CHECK(of_host >= static_cast<std::int64_t>(bytes) && of_host < static_cast<std::int64_t>(bytes) * 101 / 100, std::to_string(of_host));
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  using namespace troupe::testing_ranks;
  register_contract(true);
  register_hosts();
  registry().bodies["bitwise_of_hosts"] = troupe::bitwise_of_hosts;
  registry().bodies["wire"] = troupe::wire;
  return main_of_ranks(argc, argv);
}

// The contract of Communicator over LibTorch's Gloo, between processes.
#include "comm_cases.hpp"

#include <troupe/c10d.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <thread>

namespace troupe {
namespace {

using namespace testing_ranks;
using std::chrono::milliseconds;
using testing::HasSubstr;

struct Directory {
  std::filesystem::path path;
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "troupe-gloo-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Directory() { std::filesystem::remove_all(path); }
};

std::vector<RankResult> run(int size, const std::string& body, const std::string& argument = "", milliseconds timeout = milliseconds{30'000}) {
  const Directory directory;
  return Ranks{"gloo", size, body, argument, timeout, directory.path.string()}.join();
}

class GlooContract : public testing::TestWithParam<int> {};

void everything(Communicator& group, const std::string&) {
  registry().bodies.at("traffic")(group, "");
  for (const auto* n : {"0", "1", "1027", "20001"}) registry().bodies.at("collectives")(group, n);
  for (const auto* body : {"overlap", "in_place", "owners", "widened", "bad_arguments"}) registry().bodies.at(body)(group, "");
  registry().bodies.at("split")(group, "1");
}

TEST_P(GlooContract, CombinesEverySizeTypeAndReduction) { EXPECT_EQ(failures(run(GetParam(), "everything")), ""); }

TEST_P(GlooContract, RecordsItsCollectives) { EXPECT_EQ(failures(run(GetParam(), "record", "30")), ""); }

INSTANTIATE_TEST_SUITE_P(Ranks, GlooContract, testing::Values(1, 2, 3, 4));

TEST(Gloo, TheDeadlineNamesTheRankThatDidNotCome) {
  const auto results = run(3, "deadline");
  EXPECT_EQ(failures(results), "");
  for (const auto& result : results) 
    EXPECT_THAT(result.text, HasSubstr("all_reduce #2 of `encoder.5` (sum, F32 x 8): rank 1 did not come within 200 ms (waiting: 0, 2); rank 1's "
                                       "last was barrier #1, finished 0."));
}

TEST(Gloo, AMismatchNamesEachRanksCall) {
  const auto results = run(2, "mismatch");
  EXPECT_EQ(failures(results), "");
  EXPECT_EQ(results[0].text,
            "ranks disagree: rank 0 is at all_reduce #2 of `encoder.5` (sum, F32 x 8); rank 1 is at broadcast #2 of `encoder.6` (from rank 0, "
            "F32 x 4)\n");
}

TEST(Gloo, AnAbortFreesEveryRankWithin100Milliseconds) {
  const auto start = std::chrono::steady_clock::now();
  expect_freed_in_time([] { return run(3, "abort_from_rank_0"); });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds{25}) << "nor does the end of the process wait for Gloo";
}

TEST(Gloo, AnAbortFreesRanksThatWaitInASplitGroupWithin100Milliseconds) {
  expect_freed_in_time([] { return run(4, "abort_parent"); });
}

TEST(Gloo, ADeadlineNamesRanksAsInTheFirstGroup) {
  const auto results = run(4, "lost_in_split");
  EXPECT_EQ(failures(results), "");
  EXPECT_THAT(results[1].text, HasSubstr("barrier #2 in the group of ranks 1, 3: rank 3 did not come within 200 ms (waiting: 1); rank 3's last "
                                         "was barrier #1, finished"));
}

void killed(Communicator& group, const std::string&) {
  group.barrier().wait().or_throw();
  say("here");
  if (group.rank() == 1) std::this_thread::sleep_for(std::chrono::seconds{20});
  const auto outcome = group.barrier().wait();
  TROUPE_CHECK(!outcome.ok());
  say(outcome.text());
}

TEST(Gloo, AKilledRankFreesItsPeersLongBeforeTheDeadline) {
  const Directory directory;
  Ranks ranks{"gloo", 2, "killed", "", milliseconds{30'000}, directory.path.string()};
  ASSERT_TRUE(ranks.wait_for(0, "here"));
  ASSERT_TRUE(ranks.wait_for(1, "here"));
  const auto start = std::chrono::steady_clock::now();
  ranks.kill(1, SIGKILL);
  const auto results = ranks.join();
  EXPECT_TRUE(results[0].ok) << results[0].text;
  EXPECT_THAT(results[0].text, HasSubstr("barrier #2 failed in gloo"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds{5});
}

TEST(Gloo, MeetsOnlyInAPrivateDirectory) {
  const Directory directory;
  std::filesystem::permissions(directory.path, std::filesystem::perms::others_write, std::filesystem::perm_options::add);
  EXPECT_THROW((void)make_gloo_communicator(0, 1, directory.path, milliseconds{100}), Failure);
}

TEST(Gloo, SaysSoWhenNobodyElseComesToTheMeeting) {
  const Directory directory;
  try {
    (void)make_gloo_communicator(0, 2, directory.path, milliseconds{300});
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::DeadlinePassed) << failure.what();
  }
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  using namespace troupe::testing_ranks;
  register_contract(false);
  registry().bodies["everything"] = troupe::everything;
  registry().bodies["killed"] = troupe::killed;
  registry().joins["gloo"] = [](const std::string& place, int rank, int size, std::chrono::milliseconds timeout) {
    return troupe::make_gloo_communicator(rank, size, place, timeout);
  };
  return main_of_ranks(argc, argv);
}

#include "fault_run.hpp"

#include <map>
#include <sstream>

// Elastic runs that lose a rank and get it back.

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

class GrowthRun : public FaultRun, public testing::WithParamInterface<Placement> {
 protected:
  void SetUp() override {
    function_ = "grows";
    options_.scaling.placement = GetParam();
    options_.scaling.num_workers = 3;
    options_.scaling.min_workers = 1;
    options_.scaling.grow_after = 300ms;
    options_.run.failure.max_failures = 5;
    options_.run.failure.snapshot_every = 0;
  }
  void fail_in(const std::vector<std::int64_t>& attempts) {
    nlohmann::ordered_json json;
    json["ranks"] = 3;
    json["fails_in"] = attempts;
    config_ = Config(json);
  }
  static std::string journal(const Result& result) {
    std::ostringstream text;
    text << std::ifstream{result.path / "journal.jsonl"}.rdbuf();
    return text.str();
  }
  /// By attempt, of those that ended well.
  static std::map<std::uint64_t, std::map<int, double>> pids(const Result& result) {
    std::map<std::uint64_t, std::map<int, double>> found;
    for (const auto& report : result.history) found[report.attempt][report.rank] = report.metrics.number("pid").value();
    return found;
  }
};

TEST_P(GrowthRun, GoesOnWithFewerAndTakesTheLostRankBack) {
  fail_in({1, 2});
  const auto result = run("");
  ASSERT_TRUE(result.ok()) << result.error->message;
  const auto pid = pids(result);
  ASSERT_EQ(pid.size(), 2u);
  EXPECT_EQ(pid.at(3).size(), 2u);
  EXPECT_EQ(pid.at(4).size(), 3u);
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(pid.at(4).at(rank), pid.at(3).at(rank)) << "processes stay";
  EXPECT_THAT(journal(result), HasSubstr("going on with 3 ranks instead of 2 from the next step boundary on"));
}

TEST_P(GrowthRun, GoesBackUncountedWhenTheGrownAttemptGetsNowhere) {
  fail_in({1, 2, 4});
  options_.run.failure.max_failures = 2;  // the first two attempts spend it
  const auto result = run("");
  ASSERT_TRUE(result.ok()) << result.error->message;
  const auto pid = pids(result);
  EXPECT_EQ(pid.at(5).size(), 2u);
  EXPECT_EQ(pid.at(6).size(), 3u);
  EXPECT_THAT(journal(result), HasSubstr("with 3 ranks it got nowhere (no luck yet): going on with 2 as before"));
}

TEST_P(GrowthRun, DoesNotGrowWhenToldNotTo) {
  fail_in({1, 2});
  options_.scaling.grow_after = 0ms;
  options_.run.time_limit = 1500ms;
  const auto result = run("");
  EXPECT_TRUE(result.preempted);
  EXPECT_EQ(pids(result).rbegin()->second.size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(Placements, GrowthRun, testing::Values(Placement::Threads, Placement::Processes),
                         [](const auto& test) { return test.param == Placement::Threads ? "Threads" : "Processes"; });

}  // namespace
}  // namespace troupe

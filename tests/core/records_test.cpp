#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <troupe/config.hpp>
#include <troupe/records.hpp>

namespace troupe {
namespace {

ReportRecord report(int rank, std::uint64_t index, Metrics metrics) {
  ReportRecord made;
  made.attempt = 2;
  made.rank = rank;
  made.index = index;
  made.time_s = 1.5;
  made.metrics = std::move(metrics);
  return made;
}

TEST(Records, KeepEveryKindOfMetricThroughJson) {
  auto written = report(1, 3, Metrics{{"n", 3}, {"x", 0.1}, {"ok", true}, {"word", "a\"b"}, {"inf", std::numeric_limits<double>::infinity()}});
  written.checkpoint = Checkpoint{"/old/place/checkpoint_000003"};
  const auto text = to_json(written).dump();
  const auto read = report_from_json(nlohmann::ordered_json::parse(text), "/new/place");
  EXPECT_EQ(read.metrics, written.metrics);
  EXPECT_EQ(read.attempt, 2u);
  EXPECT_EQ(read.rank, 1);
  EXPECT_EQ(read.index, 3u);
  EXPECT_EQ(read.time_s, 1.5);
  EXPECT_EQ(read.checkpoint->path(), "/new/place/checkpoint_000003");
}

TEST(Records, KeepAResultThroughJson) {
  Result written;
  written.path = "/runs/a";
  written.metrics = Metrics{{"acc", 0.9}};
  written.history = {report(0, 0, Metrics{{"acc", 0.9}})};
  written.checkpoints = {{Checkpoint{"/runs/a/checkpoint_000000"}, Metrics{{"acc", 0.9}}, 0}};
  written.checkpoint = written.best_checkpoint = written.checkpoints.front();
  written.error.emplace();
  written.error->code = Errc::RankKilled;
  written.error->message = "gone";
  written.error->rank = 1;
  written.error->signal = 9;
  written.error->last_lines = {"one", "two"};
  written.stopped_early = true;
  const auto read = result_from_json(nlohmann::ordered_json::parse(to_json(written).dump()), "/moved/a");
  EXPECT_EQ(read.metrics, written.metrics);
  EXPECT_EQ(read.history.size(), 1u);
  EXPECT_EQ(read.best_checkpoint->checkpoint.path(), "/moved/a/checkpoint_000000");
  EXPECT_EQ(read.error->code, Errc::RankKilled);
  EXPECT_EQ(read.error->signal, 9);
  EXPECT_FALSE(read.error->exit_code);
  EXPECT_EQ(read.error->last_lines, written.error->last_lines);
  EXPECT_TRUE(read.stopped_early);
}

TEST(Records, SayThatAFileIsCorrupt) {
  try {
    (void)report_from_json(nlohmann::ordered_json{{"attempt", 1}}, "/x");
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::FileCorrupt);
  }
}

TEST(LatestMetrics, AreRankZerosOrTheLowestReportingRanks) {
  EXPECT_EQ(latest_metrics({report(1, 0, Metrics{{"a", 1}}), report(0, 0, Metrics{{"a", 2}}), report(0, 1, Metrics{{"a", 3}}),
                            report(1, 1, Metrics{{"a", 4}})}),
            (Metrics{{"a", 3}}));
  EXPECT_EQ(latest_metrics({report(2, 0, Metrics{{"a", 1}}), report(1, 0, Metrics{{"a", 2}}), report(2, 1, Metrics{{"a", 3}})}),
            (Metrics{{"a", 2}}));
  EXPECT_TRUE(latest_metrics({}).empty());
}

TEST(Config, NamesTheNearestKeyOfAMisspeltOne) {
  const Config config{{"learning_rate", 0.1}, {"epochs", 3}};
  try {
    (void)config.get<int>("epoch");
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::InvalidConfig);
    EXPECT_STREQ(failure.what(), "train_loop_config has no key 'epoch'; did you mean 'epochs'?");
  }
  EXPECT_EQ(config.unused(), (std::vector<std::string>{"learning_rate", "epochs"}));
  EXPECT_THROW((void)config.get<bool>("epochs"), Failure);
}

}  // namespace
}  // namespace troupe

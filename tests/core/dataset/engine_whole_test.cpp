#include <gtest/gtest.h>

#include <arrow/table.h>

#include <algorithm>
#include <filesystem>

#include <troupe/dataset/sinks.hpp>
#include <troupe/dataset/sources.hpp>

#include "numbers_source.hpp"

namespace troupe {
namespace {

using test::append;
using test::counting;
using test::drain;
using test::ids_of;
using test::numbers;
using test::small_blocks;

std::vector<std::int64_t> sorted(std::vector<std::int64_t> ids) {
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::vector<std::int64_t> all_of(const Dataset& dataset, std::int64_t epoch = 0) {
  auto options = small_blocks();
  options.epoch = epoch;
  auto stream = dataset.stream(options);
  return drain(stream);
}

/// Every row of the data set, gathered from ranks of a changing number that take a few rows each.
std::vector<std::int64_t> through_changing_ranks(const Dataset& dataset) {
  std::vector<std::int64_t> seen;
  std::vector<DatasetCursor> cursors;
  for (int round = 0;; ++round) {
    const int ranks = 1 + round % 4;
    std::vector<DatasetCursor> next;
    bool any = false;
    for (int rank = 0; rank < ranks; ++rank) {
      auto stream = cursors.empty() ? dataset.stream(small_blocks(rank, ranks)) : dataset.resume(cursors, small_blocks(rank, ranks));
      for (int i = 0; i < 2; ++i)
        if (const auto batch = stream.next_batch(5)) {
          append(seen, ids_of(*batch));
          any = true;
        }
      next.push_back(stream.cursor());
    }
    cursors = next;
    if (!any) return seen;
  }
}

Record times_ten(const Row& row) { return {{"id", row.get<std::int64_t>("id") * 10}}; }
bool is_even(const Row& row) { return row.get<std::int64_t>("id") % 2 == 0; }

TEST(Dataset, LimitsToTheFirstRows) {
  const Dataset base{numbers({5, 0, 10, 30})};
  for (const std::int64_t n : {0, 1, 5, 6, 15, 44, 45, 100}) {
    EXPECT_EQ(all_of(base.limit(n)), counting(0, std::min<std::int64_t>(n, 45))) << n;
    EXPECT_EQ(base.limit(n).count(), std::min<std::int64_t>(n, 45));
  }
  EXPECT_EQ(all_of(base.map(times_ten).limit(3)), (std::vector<std::int64_t>{0, 10, 20}));
  EXPECT_EQ(all_of(base.filter(is_even).limit(3).map(times_ten)), (std::vector<std::int64_t>{0, 20, 40}));
  EXPECT_EQ(all_of(base.limit(20).filter(is_even).limit(7)), (std::vector<std::int64_t>{0, 2, 4, 6, 8, 10, 12}));
  EXPECT_EQ(all_of(base.limit(3).repeat(2)), (std::vector<std::int64_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(all_of(base.repeat(2).limit(50)).size(), 50u);
  EXPECT_THROW(static_cast<void>(base.shuffle_windows(10, 1).limit(3)), Failure);
}

TEST(Dataset, LimitsTheOrderThatAnEpochHas) {
  const Dataset base = Dataset{numbers({10, 10, 10, 10, 10})}.randomize_block_order(3);
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    auto expected = all_of(base, epoch);
    expected.resize(17);
    EXPECT_EQ(all_of(base.limit(17), epoch), expected);
  }
  EXPECT_EQ(sorted(through_changing_ranks(base.limit(33))), sorted(all_of(base.limit(33))));
}

TEST(Dataset, ReadsNoMoreThanALimitNeeds) {
  test::NumbersSource::Options options;
  options.sizes = {10, 10, 10, 10};
  options.tells_rows = false;
  const auto source = numbers(options);
  EXPECT_EQ((Dataset{source}.limit(15).count()), 15);
  EXPECT_EQ(source->num_counts, 2);
}

TEST(Dataset, PutsRowsBesideEachOther) {
  const Dataset left{numbers({7, 13, 5})};
  const Dataset right = Dataset{numbers({20, 1, 4})}.map(times_ten);
  const auto zipped = left.zip(right);
  EXPECT_EQ(zipped.schema()->field_names(), (std::vector<std::string>{"id", "id_1"}));
  auto stream = zipped.stream(small_blocks());
  std::int64_t next = 0;
  while (const auto batch = stream.next_batch(4))
    for (std::int64_t i = 0; i < batch->num_rows(); ++i, ++next) {
      EXPECT_EQ((Row{*batch, i}.get<std::int64_t>("id")), next);
      EXPECT_EQ((Row{*batch, i}.get<std::int64_t>("id_1")), next * 10);
    }
  EXPECT_EQ(next, 25);
  EXPECT_EQ(sorted(through_changing_ranks(zipped)), counting(0, 25));
  EXPECT_THROW(all_of(left.zip(right.limit(24))), Failure);
}

TEST(Dataset, PutsRowsBehindEachOther) {
  const Dataset base{numbers({7, 13})};
  const auto both = base.union_with(base.filter(is_even));
  auto expected = counting(0, 20);
  append(expected, {0, 2, 4, 6, 8, 10, 12, 14, 16, 18});
  EXPECT_EQ(all_of(both), expected);
  EXPECT_EQ(sorted(through_changing_ranks(both)), sorted(expected));
  EXPECT_THROW(static_cast<void>(base.union_with(base.rename_columns({{"id", "number"}}))), Failure);
}

TEST(Dataset, SplitsRowsAtRandomTheSameWayInEveryEpoch) {
  const Dataset base = Dataset{numbers({100, 300, 600})}.map(times_ten).randomize_block_order(4);
  const auto parts = base.random_split({0.7, 0.2, 0.1}, 11);
  std::vector<std::int64_t> together;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto ids = all_of(parts[i]);
    const std::vector<double> sizes{700, 200, 100};
    EXPECT_NEAR(static_cast<double>(ids.size()), sizes[i], 60);
    EXPECT_EQ(static_cast<std::int64_t>(ids.size()), parts[i].count());
    EXPECT_EQ(sorted(all_of(parts[i], 3)), sorted(ids));
    append(together, ids);
  }
  auto expected = counting(0, 1000);
  for (auto& id : expected) id *= 10;
  EXPECT_EQ(sorted(together), expected);
  EXPECT_EQ(sorted(through_changing_ranks(parts[1])), sorted(all_of(parts[1])));
  EXPECT_EQ(sorted(all_of(base.filter(is_even).random_split({0.5}, 1)[0])), sorted(all_of(base.filter(is_even).random_split({0.5}, 1)[0], 2)));
  EXPECT_THROW(static_cast<void>(base.random_split({0.7, 0.4}, 1)), Failure);
}

TEST(Dataset, CountsWhatAFilterLeavesForEqualShares) {
  std::atomic<int> calls{0};
  const auto dataset = Dataset{numbers({13, 9, 20})}
                           .filter([&calls](const Row& row) {
                             ++calls;
                             return row.get<std::int64_t>("id") % 3 == 0;
                           })
                           .counted();
  std::vector<std::int64_t> ids;
  for (const auto& shard : dataset.streaming_split(4, SplitEqual::Truncate)) {
    EXPECT_EQ(shard.num_rows(), 3);
    auto stream = shard.stream();
    append(ids, drain(stream));
  }
  EXPECT_EQ(ids, (std::vector<std::int64_t>{0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33}));
  EXPECT_LE(calls, 42 * 4) << "counted once";
  EXPECT_EQ(sorted(through_changing_ranks(dataset)), all_of(dataset));
  EXPECT_EQ(sorted(through_changing_ranks(dataset.shuffle_windows(5, 1))), all_of(dataset));
}

class FullShuffle : public ::testing::TestWithParam<bool> {};

TEST_P(FullShuffle, PermutesAllRowsAnotherWayEveryEpoch) {
  const bool filtered = GetParam();
  Dataset base{numbers({100, 1, 0, 99})};
  if (filtered) base = base.filter(is_even);
  const auto dataset = base.random_shuffle(5).map(times_ten);
  auto expected = all_of(base.map(times_ten));
  std::vector<std::vector<std::int64_t>> epochs;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    epochs.push_back(all_of(dataset, epoch));
    EXPECT_EQ(sorted(epochs.back()), expected);
    EXPECT_EQ(all_of(dataset, epoch), epochs.back());
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  // Far from where they were: the mean distance of a random permutation is a third of its length.
  double distance = 0;
  for (std::size_t i = 0; i < epochs[0].size(); ++i) distance += std::abs(static_cast<double>(epochs[0][i]) / 10 / (filtered ? 2 : 1) * 1.0 - static_cast<double>(i));
  distance /= static_cast<double>(epochs[0].size());
  EXPECT_NEAR(distance / static_cast<double>(epochs[0].size()), 1.0 / 3, 0.1);
  EXPECT_EQ(sorted(through_changing_ranks(dataset)), expected);
  if (!filtered) {
    std::vector<std::int64_t> ids;
    for (const auto& shard : dataset.streaming_split(4, SplitEqual::Pad)) {
      EXPECT_EQ(shard.num_rows(1), 50);
      auto stream = shard.stream(1);
      append(ids, drain(stream));
    }
    EXPECT_EQ(ids, epochs[1]);
  }
}
INSTANTIATE_TEST_SUITE_P(Rows, FullShuffle, ::testing::Bool());

TEST(Dataset, ShufflesOnlyWhatARankNeedsAndMapsOnlyItsRows) {
  std::atomic<int> mapped{0};
  const auto dataset = Dataset{numbers({500, 500})}
                           .map([&mapped](const Row& row) {
                             ++mapped;
                             return times_ten(row);
                           }, [] {
                             StepOptions options;
                             options.schema = arrow::schema({arrow::field("id", arrow::int64())});
                             return options;
                           }())
                           .random_shuffle(1);
  auto stream = dataset.stream(small_blocks(0, 4));
  EXPECT_EQ(drain(stream).size(), 250u);
  EXPECT_LE(mapped, 250 + 2 * 16);
}

TEST(Dataset, KeepsWhatItMaterializesInMemoryAndBeyondInAFile) {
  const auto source = numbers({1000, 1000});
  const auto base = Dataset{source}.map(times_ten).shuffle_windows(100, 3);
  const auto expected = all_of(base);
  for (const std::int64_t memory : {std::int64_t{1} << 30, std::int64_t{2000}, std::int64_t{0}}) {
    ExecutionOptions execution;
    execution.block_rows = 8;
    const auto kept = base.materialize(memory, execution);
    const auto read = source->rows_read.load();
    EXPECT_EQ(all_of(kept), expected);
    EXPECT_EQ(all_of(kept), expected);
    EXPECT_EQ(source->rows_read, read) << "read again";
    EXPECT_EQ(kept.count(), 2000);
    EXPECT_EQ(sorted(through_changing_ranks(kept.limit(200))), sorted(all_of(kept.limit(200))));
  }
}

TEST(Dataset, LeavesNoFilesBehind) {
  const auto folder = std::filesystem::temp_directory_path() / ("troupe_engine_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  ::setenv("TMPDIR", folder.c_str(), 1);
  {
    const auto kept = Dataset{numbers({1000})}.materialize(0);
    EXPECT_EQ(kept.count(), 1000);
    EXPECT_TRUE(std::filesystem::is_empty(folder)) << "the file has a name";
  }
  ::unsetenv("TMPDIR");
  std::filesystem::remove_all(folder);
}

TEST(Dataset, SortsGroupsAndRunsWholeTables) {
  const auto base = Dataset{numbers({20, 30})}.randomize_block_order(1).filter(col("id") < 40);
  EXPECT_EQ(all_of(base.sort({{"id", true}}))[0], 39);
  EXPECT_EQ(sorted(through_changing_ranks(base.sort({{"id", true}}))), counting(0, 40));
  const auto counts = base.with_column("odd", col("id") - col("id") / 2 * 2).group_by({"odd"}, {{Aggregate::Kind::Count, "", "n"}}).take(5);
  EXPECT_EQ(counts, (std::vector<Record>{{{"odd", std::int64_t{0}}, {"n", std::int64_t{20}}}, {{"odd", std::int64_t{1}}, {"n", std::int64_t{20}}}}));
  const auto tail = base.whole_table("tail", [](const std::shared_ptr<arrow::Table>& table) { return table->Slice(35); }, base.schema());
  EXPECT_EQ(all_of(tail).size(), 5u);
  EXPECT_EQ(base.to_table()->num_rows(), 40);
}

TEST(Dataset, WritesParquetThatReadsTheSame) {
  const auto folder = std::filesystem::temp_directory_path() / ("troupe_engine_parquet_" + std::to_string(::getpid()));
  const auto base = Dataset{numbers({100, 100})}.map(times_ten);
  ParquetWriteOptions options;
  options.files.rows_per_file = 64;
  options.row_group_rows = 16;
  EXPECT_EQ(base.write_parquet(folder.string(), options).size(), 4u);
  const Dataset back{parquet_source(folder.string())};
  EXPECT_EQ(all_of(back), all_of(base));
  EXPECT_EQ(sorted(through_changing_ranks(back)), all_of(base));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace troupe

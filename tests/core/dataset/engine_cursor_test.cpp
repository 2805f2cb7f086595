#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

#include "numbers_source.hpp"

namespace troupe {
namespace {

using test::append;
using test::counting;
using test::drain;
using test::ids_of;
using test::numbers;
using test::small_blocks;

/// Plans whose rows can be counted by "id". Every one is resumed after every batch, on every number of ranks.
struct Case {
  std::string name;
  std::function<Dataset()> make;
  bool keeps_rows = true;
};

std::vector<std::int64_t> sorted(std::vector<std::int64_t> ids) {
  std::sort(ids.begin(), ids.end());
  return ids;
}

BatchFunction twice_in_block_order() {
  // What comes out depends on which rows come together: the block's rows, then the block's rows backwards plus a million.
  return [](const std::shared_ptr<arrow::RecordBatch>& rows) {
    const auto ids = ids_of(*rows);
    arrow::Int64Builder out;
    for (const auto id : ids) out.Append(id).ok();
    for (auto id = ids.rbegin(); id != ids.rend(); ++id) out.Append(*id + 1'000'000).ok();
    return arrow::RecordBatch::Make(arrow::schema({arrow::field("id", arrow::int64())}), 2 * rows->num_rows(), {out.Finish().ValueOrDie()});
  };
}

std::vector<Case> cases() {
  const auto base = [](bool tells) {
    test::NumbersSource::Options options;
    options.sizes = {13, 0, 29, 1, 8, 16, 22};
    options.cut = 5;
    options.tells_rows = tells;
    return Dataset{numbers(options)};
  };
  const auto odd = [](const Row& row) { return row.get<std::int64_t>("id") % 3 != 1; };
  const auto some = [](const Row& row) {
    std::vector<Record> out;
    for (std::int64_t i = 0; i < row.get<std::int64_t>("id") % 4; ++i) out.push_back({{"id", row.get<std::int64_t>("id") * 10 + i}});
    return out;
  };
  StepOptions changes;
  changes.changes_num_rows = true;
  StepOptions threads;
  threads.concurrency = 2;
  return {
      {"Plain", [=] { return base(true); }},
      {"UnknownRows", [=] { return base(false); }},
      {"BlockOrder", [=] { return base(true).randomize_block_order(5); }},
      {"Windows", [=] { return base(true).shuffle_windows(20, 3); }},
      {"SmallWindows", [=] { return base(false).shuffle_windows(3, 3); }},
      {"WindowsAfterBlockOrderAndRepeat", [=] { return base(true).randomize_block_order(5).repeat(2).shuffle_windows(25, 9); }},
      {"Filter", [=] { return base(true).filter(odd); }, false},
      {"FlatMapOnThreads", [=] { return base(false).flat_map(some, threads); }, false},
      {"FilterInWindows", [=] { return base(true).filter(odd).shuffle_windows(20, 1).flat_map(some); }, false},
      {"WholeBlocks", [=] { return base(true).map_batches(twice_in_block_order(), changes); }, false},
      {"WholeBlocksInWindows", [=] { return base(true).randomize_block_order(2).map_batches(twice_in_block_order(), changes).shuffle_windows(16, 1); }, false},
  };
}

class CursorTest : public ::testing::TestWithParam<Case> {};

TEST_P(CursorTest, GoesOnIdenticallyAfterEveryBatchOnAsManyRanks) {
  const Dataset dataset = GetParam().make();
  for (const int world_size : {1, 3}) {
    for (int rank = 0; rank < world_size; ++rank) {
      auto options = small_blocks(rank, world_size);
      options.epoch = 1;
      options.num_epochs = 2;
      auto whole = dataset.stream(options);
      const auto all = drain(whole);
      for (const std::int64_t batch_size : {1, 7}) {
        auto stream = dataset.stream(options);
        std::vector<std::int64_t> seen;
        for (;;) {
          // Through text, as a checkpoint keeps it.
          const auto cursor = DatasetCursor::from_json(stream.cursor().to_json());
          ASSERT_EQ(cursor.rows_delivered, static_cast<std::int64_t>(seen.size()));
          auto resumed_options = options;
          resumed_options.num_epochs = 3 - cursor.epoch;
          auto resumed = GetParam().make().resume({cursor}, resumed_options);
          const auto rest = drain(resumed);
          ASSERT_EQ(rest, std::vector<std::int64_t>(all.begin() + static_cast<std::ptrdiff_t>(seen.size()), all.end()))
              << "after " << seen.size() << " rows of rank " << rank << ": " << cursor.to_json();
          const auto batch = stream.next_batch(batch_size);
          if (!batch) break;
          append(seen, ids_of(*batch));
        }
        EXPECT_EQ(seen, all);
      }
    }
  }
}

TEST_P(CursorTest, DealsTheRestAnewToAnyNumberOfRanks) {
  const Dataset dataset = GetParam().make();
  auto options = small_blocks();
  auto whole = dataset.stream(options);
  const auto all = sorted(drain(whole));
  const auto step = [&](std::vector<DatasetStream>& streams, std::vector<std::int64_t>& seen, std::int64_t batch_size) {
    bool any = false;
    for (auto& stream : streams)
      if (const auto batch = stream.next_batch(batch_size)) {
        append(seen, ids_of(*batch));
        any = true;
      }
    return any;
  };
  // Some rows on one number of ranks, some on another, the rest on a third: the number changes after every batch, then after every third.
  for (const int first : {1, 2, 3, 5})
    for (const int second : {1, 2, 4})
      for (int steps = 0; steps < 9; ++steps) {
        std::vector<std::int64_t> seen;
        std::vector<DatasetCursor> cursors;
        {
          std::vector<DatasetStream> streams;
          for (int rank = 0; rank < first; ++rank) streams.push_back(dataset.stream(small_blocks(rank, first)));
          for (int i = 0; i < steps; ++i) step(streams, seen, 3);
          for (const auto& stream : streams) cursors.push_back(stream.cursor());
        }
        for (int i = 0; i < 2; ++i) {
          const int ranks = i == 0 ? second : 3;
          std::vector<DatasetStream> streams;
          for (int rank = 0; rank < ranks; ++rank) streams.push_back(dataset.resume(cursors, small_blocks(rank, ranks)));
          cursors.clear();
          for (int j = 0; i == 1 || j < 2; ++j)
            if (!step(streams, seen, 3)) break;
          for (const auto& stream : streams) cursors.push_back(stream.cursor());
        }
        ASSERT_EQ(sorted(seen), all) << first << " ranks, then " << second << ", then 3; after " << steps << " batches";
      }
}

TEST_P(CursorTest, GivesRanksTheEpochBetweenThem) {
  const Dataset dataset = GetParam().make();
  auto options = small_blocks();
  auto whole = dataset.stream(options);
  const auto all = sorted(drain(whole));
  for (int world_size = 1; world_size <= 9; ++world_size) {
    std::vector<std::int64_t> ids;
    for (int rank = 0; rank < world_size; ++rank) {
      auto stream = dataset.stream(small_blocks(rank, world_size));
      append(ids, drain(stream));
    }
    // Which rows stand together in a block depends on the ranks only at the ends of their shares: no row is lost or doubled all the same.
    EXPECT_EQ(sorted(ids), all) << world_size;
  }
}

INSTANTIATE_TEST_SUITE_P(Plans, CursorTest, ::testing::ValuesIn(cases()), [](const auto& one) { return one.param.name; });

std::vector<std::vector<std::int64_t>> shares(const Dataset& dataset, int world_size, SplitEqual equal) {
  std::vector<std::vector<std::int64_t>> all;
  for (const auto& shard : dataset.streaming_split(world_size, equal)) {
    auto options = small_blocks();
    auto stream = shard.stream(0, options.execution);
    all.push_back(drain(stream));
    EXPECT_EQ(shard.num_rows(), static_cast<std::int64_t>(all.back().size()));
  }
  return all;
}

TEST(DatasetSplit, PadsFromTheBeginning) {
  EXPECT_EQ(shares(Dataset{numbers({4, 6})}, 4, SplitEqual::Pad),
            (std::vector<std::vector<std::int64_t>>{{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {9, 0, 1}}));
}

TEST(DatasetSplit, TruncatesTheEnd) {
  EXPECT_EQ(shares(Dataset{numbers({4, 6})}, 4, SplitEqual::Truncate), (std::vector<std::vector<std::int64_t>>{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
}

TEST(DatasetSplit, LeavesSharesUneven) {
  EXPECT_EQ(shares(Dataset{numbers({4, 6})}, 4, SplitEqual::Uneven), (std::vector<std::vector<std::int64_t>>{{0, 1, 2}, {3, 4, 5}, {6, 7}, {8, 9}}));
}

TEST(DatasetSplit, KnowsWhatToDoWithFewerRowsThanRanks) {
  const Dataset two{numbers({1, 1})};
  EXPECT_EQ(shares(two, 5, SplitEqual::Pad), (std::vector<std::vector<std::int64_t>>{{0}, {1}, {0}, {1}, {0}}));
  EXPECT_EQ(shares(two, 3, SplitEqual::Truncate), (std::vector<std::vector<std::int64_t>>{{}, {}, {}}));
  EXPECT_EQ(shares(two, 3, SplitEqual::Uneven), (std::vector<std::vector<std::int64_t>>{{0}, {1}, {}}));
  for (const auto equal : {SplitEqual::Pad, SplitEqual::Truncate, SplitEqual::Uneven})
    EXPECT_EQ(shares(Dataset{numbers({0})}, 2, equal), (std::vector<std::vector<std::int64_t>>{{}, {}}));
}

TEST(DatasetSplit, AgreesWithTheRulesForAllLengthsAndRanks) {
  for (std::int64_t length = 0; length <= 40; ++length) {
    const Dataset dataset{numbers({length / 3, length - length / 3})};
    for (int world_size = 1; world_size <= 8; ++world_size) {
      const auto each = [&](SplitEqual equal, std::int64_t rank) {
        if (equal == SplitEqual::Truncate) return world_size == 1 ? length : length / world_size;
        if (equal == SplitEqual::Pad) return (length + world_size - 1) / world_size;
        return length / world_size + (rank < length % world_size ? 1 : 0);
      };
      for (const auto equal : {SplitEqual::Pad, SplitEqual::Truncate, SplitEqual::Uneven}) {
        std::int64_t next = 0;
        const auto all = shares(dataset, world_size, equal);
        for (int rank = 0; rank < world_size; ++rank) {
          std::vector<std::int64_t> expected;
          for (std::int64_t i = 0; i < each(equal, rank); ++i) expected.push_back(next++ % std::max<std::int64_t>(length, 1));
          ASSERT_EQ(all[static_cast<std::size_t>(rank)], expected) << length << " rows, rank " << rank << " of " << world_size;
        }
      }
    }
  }
}

TEST(DatasetSplit, GivesEqualSharesOfWhatIsLeft) {
  const Dataset dataset = Dataset{numbers({30, 31, 40})}.shuffle_windows(10, 4);
  for (const auto equal : {SplitEqual::Pad, SplitEqual::Truncate})
    for (const int second : {1, 2, 5}) {
      std::vector<DatasetCursor> cursors;
      std::set<std::int64_t> seen;
      for (int rank = 0; rank < 3; ++rank) {
        auto stream = dataset.stream(small_blocks(rank, 3, equal));
        for (int i = 0; i < 4; ++i)
          for (const auto id : ids_of(*stream.next_batch(4))) seen.insert(id);
        cursors.push_back(stream.cursor());
      }
      EXPECT_EQ(seen.size(), 48u);
      std::multiset<std::int64_t> rest;
      std::size_t each = 0;
      for (int rank = 0; rank < second; ++rank) {
        auto stream = dataset.resume(cursors, small_blocks(rank, second, equal));
        const auto ids = drain(stream);
        if (rank == 0) each = ids.size();
        EXPECT_EQ(ids.size(), each);
        rest.insert(ids.begin(), ids.end());
      }
      for (const auto id : rest) EXPECT_FALSE(seen.contains(id)) << id;
      const std::size_t distinct = std::set<std::int64_t>(rest.begin(), rest.end()).size();
      if (equal == SplitEqual::Pad) {
        EXPECT_EQ(distinct, 53u);
      } else {  // two of 101 rows were nobody's from the beginning, up to `second` - 1 are now
        EXPECT_EQ(rest.size(), distinct);
        EXPECT_GE(distinct, 51u - static_cast<std::size_t>(second) + 1);
      }
    }
}

TEST(DatasetSplit, OpensOnlyItsOwnFragmentsAndCountsNone) {
  const auto source = numbers({100, 100, 100, 100});
  auto stream = Dataset{source}.stream(small_blocks(2, 4));
  EXPECT_EQ(drain(stream), counting(200, 300));
  EXPECT_EQ(source->num_opened, 1);
  EXPECT_EQ(source->num_counts, 0);
}

TEST(DatasetSplit, CountsOnceWhereMetadataDoesNotTell) {
  test::NumbersSource::Options options;
  options.sizes = {100, 100, 100, 100};
  options.tells_rows = false;
  const auto source = numbers(options);
  const Dataset dataset{source};
  for (int rank = 0; rank < 4; ++rank) {
    auto stream = dataset.stream(small_blocks(rank, 4));
    EXPECT_EQ(drain(stream), counting(rank * 100, rank * 100 + 100));
  }
  EXPECT_EQ(source->num_counts, 4);
}

TEST(DatasetSplit, RefusesEqualSharesAfterAFilter) {
  const auto dataset = Dataset{numbers({10})}.filter([](const Row&) { return true; });
  try {
    static_cast<void>(dataset.streaming_split(2, SplitEqual::Pad));
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::Unsupported);
    EXPECT_NE(std::string{failure.what()}.find("counted()"), std::string::npos);
  }
  EXPECT_EQ(dataset.streaming_split(2, SplitEqual::Uneven).size(), 2u);
}

TEST(DatasetSplit, GivesRanksFragmentsOfTheirOwnNodes) {
  const auto source = numbers({10, 10, 10, 10, 10, 10, 10, 10});
  const Dataset dataset{source};
  std::vector<std::int64_t> ids;
  for (int rank = 0; rank < 4; ++rank) {
    auto options = small_blocks(rank, 4, SplitEqual::Pad);
    options.split.fragment_nodes = {1, 1, 0, 0, 1, -1, 0, 1};
    options.split.rank_nodes = {0, 0, 1, 1};
    auto stream = dataset.stream(options);
    const auto mine = drain(stream);
    EXPECT_EQ(mine.size(), 20u);
    std::size_t local = 0;
    for (const auto id : mine) {
      const int node = options.split.fragment_nodes[static_cast<std::size_t>(id / 10)];
      local += node < 0 || node == options.split.rank_nodes[static_cast<std::size_t>(rank)] ? 1 : 0;
    }
    EXPECT_EQ(local, 20u) << rank;
    append(ids, mine);
  }
  EXPECT_EQ(sorted(ids), counting(0, 80));
}

TEST(DatasetCursor, SaysWhatIsWrongWithIt) {
  const Dataset dataset{numbers({10, 10})};
  auto stream = dataset.stream(small_blocks(0, 2));
  const auto cursor = stream.cursor();
  EXPECT_EQ(DatasetCursor::from_json(cursor.to_json()), cursor);
  const auto fails = [](auto call, const std::string& text) {
    try {
      call();
      ADD_FAILURE() << "nothing thrown for " << text;
    } catch (const Failure& failure) {
      EXPECT_NE(std::string{failure.what()}.find(text), std::string::npos) << failure.what();
    }
  };
  fails([&] { static_cast<void>(Dataset{numbers({10, 10, 10})}.resume({cursor}, small_blocks(0, 2))); }, "another data set");
  fails([&] { static_cast<void>(dataset.shuffle_windows(4, 1).resume({cursor}, small_blocks(0, 2))); }, "shuffle_windows 4 1");
  fails([&] { static_cast<void>(dataset.resume({cursor}, small_blocks(0, 3))); }, "rank 1's is missing");
  fails([&] { static_cast<void>(dataset.resume({cursor, cursor}, small_blocks(0, 3))); }, "rank 1's is missing");
  fails([&] { static_cast<void>(dataset.resume({}, small_blocks(0, 3))); }, "needs a cursor");
  fails([&] { static_cast<void>(DatasetCursor::from_json("{}")); }, "data set cursor");
  fails([&] { static_cast<void>(DatasetCursor::from_json("nonsense")); }, "data set cursor");
  auto text = cursor.to_json();
  text.replace(text.find("\"version\":1"), 11, "\"version\":2");
  fails([&] { static_cast<void>(DatasetCursor::from_json(text)); }, "newer Troupe");
}

}  // namespace
}  // namespace troupe

#include <gtest/gtest.h>

#include "numbers_source.hpp"

namespace troupe {
namespace {

using test::append;
using test::counting;
using test::drain;
using test::ids_of;
using test::numbers;
using test::small_blocks;

TEST(DatasetStream, GivesAllRowsInOrderWhateverTheBlocks) {
  for (const std::int64_t cut : {1, 3, 8, 100}) {
    test::NumbersSource::Options options;
    options.sizes = {5, 0, 17, 8, 1};
    options.cut = cut;
    auto stream = Dataset{numbers(options)}.stream(small_blocks());
    EXPECT_EQ(drain(stream), counting(0, 31)) << cut;
  }
}

TEST(DatasetStream, CutsBatchesOfOneSizeAcrossFragments) {
  auto stream = Dataset{numbers({5, 0, 17, 8, 1})}.stream(small_blocks());
  std::vector<std::int64_t> ids;
  for (int i = 0; i < 4; ++i) {
    const auto batch = stream.next_batch(7);
    ASSERT_EQ(batch->num_rows(), 7);
    append(ids, ids_of(*batch));
  }
  const auto rest = stream.next_batch(7);
  EXPECT_EQ(rest->num_rows(), 3);
  append(ids, ids_of(*rest));
  EXPECT_EQ(ids, counting(0, 31));
  EXPECT_EQ(stream.next_batch(7), nullptr);
  EXPECT_EQ(stream.next_batch(7), nullptr);
}

TEST(DatasetStream, DropsTheShortLastBatchOfEveryEpoch) {
  auto options = small_blocks();
  options.num_epochs = 2;
  auto stream = Dataset{numbers({5, 5})}.stream(options);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(stream.next_batch(4, true)->num_rows(), 4);
  EXPECT_EQ(stream.next_batch(4, true), nullptr);
}

TEST(DatasetStream, GoesOnWithTheNextEpochButPutsNoTwoInOneBatch) {
  auto options = small_blocks();
  options.num_epochs = 3;
  auto stream = Dataset{numbers({10})}.stream(options);
  for (int epoch = 0; epoch < 3; ++epoch)
    for (const std::int64_t rows : {4, 4, 2}) {
      EXPECT_EQ(stream.next_batch(4)->num_rows(), rows);
      EXPECT_EQ(stream.cursor().epoch, epoch);
    }
  EXPECT_EQ(stream.next_batch(4), nullptr);
}

TEST(DatasetStream, HasNoRowsWhereTheSourceHasNone) {
  for (const auto& sizes : std::vector<std::vector<std::int64_t>>{{}, {0}, {0, 0, 0}}) {
    auto stream = Dataset{numbers(sizes)}.stream(small_blocks());
    EXPECT_EQ(stream.next(), nullptr);
    EXPECT_EQ(stream.next_batch(3), nullptr);
    EXPECT_TRUE(stream.cursor().epoch_finished());
  }
}

TEST(DatasetStream, RefusesToGoThroughNothingForEver) {
  auto options = small_blocks();
  options.num_epochs = -1;
  auto stream = Dataset{numbers({0})}.stream(options);
  EXPECT_THROW(static_cast<void>(stream.next()), Failure);
}

TEST(Dataset, MapsFiltersAndMultipliesRows) {
  const auto dataset = Dataset{numbers({30})}
                           .map([](const Row& row) { return Record{{"id", row.get<std::int64_t>("id") * 10}, {"text", std::to_string(row.get<std::int64_t>("id"))}}; })
                           .filter([](const Row& row) { return row.get<std::int64_t>("id") % 20 == 0; })
                           .flat_map([](const Row& row) {
                             const auto id = row.get<std::int64_t>("id");
                             return std::vector<Record>{{{"id", id}, {"text", row.value("text")}}, {{"id", id + 1}, {"text", row.value("text")}}};
                           });
  auto stream = dataset.stream(small_blocks());
  std::vector<std::int64_t> expected;
  for (std::int64_t i = 0; i < 30; i += 2) append(expected, {i * 10, i * 10 + 1});
  EXPECT_EQ(drain(stream), expected);
  EXPECT_EQ(dataset.schema()->ToString(), "id: int64\ntext: string");
  EXPECT_EQ(dataset.count(), 30);
}

BatchFunction add(std::int64_t number, std::chrono::microseconds delay = {}) {
  return [=](const std::shared_ptr<arrow::RecordBatch>& rows) {
    if (delay.count() > 0) std::this_thread::sleep_for(delay);
    arrow::Int64Builder ids;
    for (const auto id : ids_of(*rows)) ids.Append(id + number).ok();
    return arrow::RecordBatch::Make(arrow::schema({arrow::field("id", arrow::int64())}), rows->num_rows(), {ids.Finish().ValueOrDie()});
  };
}

TEST(Dataset, KeepsTheOrderWithManyThreadsInEveryStage) {
  StepOptions four;
  four.concurrency = 4;
  std::atomic<int> calls{0};
  const auto uneven = [&calls](const std::shared_ptr<arrow::RecordBatch>& rows) {
    if (++calls % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds{300});
    return add(1)(rows);
  };
  auto stream = Dataset{numbers({500, 1, 499})}.map_batches(uneven, four).map_batches(add(10)).map_batches(uneven, four).stream(small_blocks());
  EXPECT_EQ(drain(stream), counting(12, 1012));
}

TEST(Dataset, MakesAFunctionForEveryThread) {
  std::atomic<int> made{0};
  StepOptions three;
  three.concurrency = 3;
  auto stream = Dataset{numbers({400})}
                    .map_batches_each(
                        [&made] {
                          ++made;
                          return add(0, std::chrono::microseconds{100});
                        },
                        three)
                    .stream(small_blocks());
  EXPECT_EQ(drain(stream), counting(0, 400));
  EXPECT_LE(made, 3);
  EXPECT_GE(made, 1);
}

TEST(Dataset, KeepsTheOrderOfAnswersThatComeLater) {
  std::vector<std::thread> threads;
  std::mutex mutex;
  StepOptions options;
  options.concurrency = 5;
  options.batch_size = 3;
  {
    auto stream = Dataset{numbers({100, 23})}
                      .map_batches_async(
                          [&](std::shared_ptr<arrow::RecordBatch> rows, BatchReply reply) {
                            const std::lock_guard lock{mutex};
                            threads.emplace_back([rows, reply, n = threads.size()] {
                              std::this_thread::sleep_for(std::chrono::microseconds{(n * 7919) % 500});
                              reply(add(5)(rows));
                            });
                          },
                          options)
                      .stream(small_blocks());
    EXPECT_EQ(drain(stream), counting(5, 128));
  }
  for (auto& thread : threads) thread.join();
}

TEST(Dataset, TellsWhenAnAsynchronousFunctionDropsItsBatch) {
  StepOptions options;
  options.name = "actor";
  auto stream = Dataset{numbers({100})}.map_batches_async([](std::shared_ptr<arrow::RecordBatch>, BatchReply) {}, options).stream(small_blocks());
  try {
    drain(stream);
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::Aborted);
    EXPECT_NE(std::string{failure.what()}.find("step actor, part0, rows 0 to 7"), std::string::npos) << failure.what();
  }
}

TEST(Dataset, GivesAStepNoMoreRowsThanItAsksFor) {
  std::mutex mutex;
  std::set<std::int64_t> sizes;
  StepOptions options;
  options.batch_size = 3;
  auto stream = Dataset{numbers({20})}
                    .map_batches(
                        [&](const std::shared_ptr<arrow::RecordBatch>& rows) {
                          const std::lock_guard lock{mutex};
                          sizes.insert(rows->num_rows());
                          return rows;
                        },
                        options)
                    .stream(small_blocks());
  EXPECT_EQ(drain(stream), counting(0, 20));
  EXPECT_EQ(sizes, (std::set<std::int64_t>{1, 2, 3}));
}

TEST(Dataset, ReadsOnlyTheColumnsNeeded) {
  test::NumbersSource::Options options;
  options.sizes = {10};
  options.payload = 4;
  const Dataset dataset{numbers(options)};
  EXPECT_EQ(dataset.select_columns({"id"}).schema()->ToString(), "id: int64");
  EXPECT_EQ(dataset.drop_columns({"id"}).schema()->ToString(), "payload: fixed_size_binary[4]");
  EXPECT_EQ(dataset.rename_columns({{"id", "number"}}).schema()->field_names(), (std::vector<std::string>{"number", "payload"}));
  EXPECT_THROW(static_cast<void>(dataset.select_columns({"nope"})), Failure);
  const auto rows = dataset.add_column("twice", [](const Row& row) { return row.get<std::int64_t>("id") * 2; }).drop_columns({"payload"}).take(3);
  EXPECT_EQ(rows, (std::vector<Record>{{{"id", std::int64_t{0}}, {"twice", std::int64_t{0}}}, {{"id", std::int64_t{1}}, {"twice", std::int64_t{2}}},
                                       {{"id", std::int64_t{2}}, {"twice", std::int64_t{4}}}}));
}

TEST(Dataset, RefusesAFunctionThatChangesTheNumberOfRowsUnsaid) {
  const auto half = [](const std::shared_ptr<arrow::RecordBatch>& rows) { return rows->Slice(0, rows->num_rows() / 2); };
  auto stream = Dataset{numbers({20})}.map_batches(half).stream(small_blocks());
  EXPECT_THROW(drain(stream), Failure);
  StepOptions said;
  said.changes_num_rows = true;
  auto fine = Dataset{numbers({16})}.map_batches(half, said).stream(small_blocks());
  EXPECT_EQ(drain(fine), (std::vector<std::int64_t>{0, 1, 2, 3, 8, 9, 10, 11}));
}

TEST(Dataset, PermutesWithinWindowsAnotherWayEveryEpoch) {
  const auto dataset = Dataset{numbers({100, 100})}.shuffle_windows(20, 7);
  std::vector<std::vector<std::int64_t>> epochs;
  for (std::int64_t epoch = 0; epoch < 2; ++epoch) {
    auto options = small_blocks();
    options.epoch = epoch;
    auto stream = dataset.stream(options);
    epochs.push_back(drain(stream));
    auto sorted = epochs.back();
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(sorted, counting(0, 200));
    for (std::size_t i = 0; i < 200; ++i) EXPECT_LT(std::abs(epochs.back()[i] - static_cast<std::int64_t>(i)), 28) << i;
    auto again = dataset.stream(options);
    EXPECT_EQ(drain(again), epochs.back());
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[0], counting(0, 200));
}

TEST(Dataset, ReadsFragmentsInAnotherOrderEveryEpoch) {
  const auto dataset = Dataset{numbers({10, 10, 10, 10, 10})}.randomize_block_order(3);
  std::set<std::vector<std::int64_t>> orders;
  for (std::int64_t epoch = 0; epoch < 4; ++epoch) {
    auto options = small_blocks();
    options.epoch = epoch;
    auto stream = dataset.stream(options);
    auto ids = drain(stream);
    orders.insert(ids);
    for (std::size_t i = 0; i < 50; i += 10)
      for (std::size_t j = 1; j < 10; ++j) EXPECT_EQ(ids[i + j], ids[i] + static_cast<std::int64_t>(j));
  }
  EXPECT_GE(orders.size(), 3u);
}

TEST(Dataset, RepeatsPassesEachInItsOwnOrder) {
  auto stream = Dataset{numbers({4, 4, 4, 4})}.randomize_block_order(1).repeat(3).stream(small_blocks());
  const auto ids = drain(stream);
  ASSERT_EQ(ids.size(), 48u);
  std::set<std::vector<std::int64_t>> passes;
  for (std::size_t i = 0; i < 48; i += 16) {
    std::vector<std::int64_t> pass(ids.begin() + static_cast<std::ptrdiff_t>(i), ids.begin() + static_cast<std::ptrdiff_t>(i) + 16);
    passes.insert(pass);
    std::sort(pass.begin(), pass.end());
    EXPECT_EQ(pass, counting(0, 16));
  }
  EXPECT_GE(passes.size(), 2u);
  EXPECT_EQ((Dataset{numbers({4})}.repeat(3).count()), 12);
}

TEST(Dataset, ShowsWhatItsStagesDid) {
  StepOptions two;
  two.name = "add one";
  two.concurrency = 2;
  const auto dataset = Dataset{numbers({100})}.map_batches(add(1), two);
  auto stream = dataset.stream(small_blocks());
  drain(stream);
  const auto stats = stream.stats();
  ASSERT_EQ(stats.stages.size(), 2u);
  EXPECT_EQ(stats.stages[0].rows_out, 100);
  EXPECT_EQ(stats.stages[1].rows_in, 100);
  EXPECT_EQ(stats.stages[1].blocks, 13);
  EXPECT_EQ(stats.rows, 100);
  EXPECT_EQ(stats.held_bytes, 0);
  EXPECT_GT(stats.peak_bytes, 0);
  EXPECT_NE(dataset.stats().find("add one"), std::string::npos) << dataset.stats();
}

}  // namespace
}  // namespace troupe

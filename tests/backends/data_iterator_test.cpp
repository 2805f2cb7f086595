#include "../core/dataset/numbers_source.hpp"

#include <troupe/async_host.hpp>
#include <troupe/data/training_stream.hpp>
#include <troupe/data_iterator.hpp>

#include <arrow/array.h>
#include <arrow/builder.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <thread>

namespace troupe {
namespace {

using test::counting;
using test::numbers;
using test::NumbersSource;
using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<std::int64_t>;

Ids ids_of(const Batch& batch) {
  const auto& ids = batch["id"];
  return {ids.const_data_ptr<std::int64_t>(), ids.const_data_ptr<std::int64_t>() + ids.numel()};
}

DataIterator::Setup small(int rank = 0, int world_size = 1, SplitEqual equal = SplitEqual::Pad) {
  DataIterator::Setup setup;
  setup.split.rank = rank;
  setup.split.world_size = world_size;
  setup.split.equal = equal;
  setup.execution.block_rows = 8;
  return setup;
}

DataIterator over(std::vector<std::int64_t> sizes, DataIterator::Setup setup = small()) { return {Dataset{numbers(std::move(sizes))}, std::move(setup)}; }

std::vector<Ids> batches_of(const DataIterator& iterator, const IterBatchesOptions& options) {
  std::vector<Ids> batches;
  auto range = iterator.iter_batches(options);
  for (const auto& batch : range) batches.push_back(ids_of(batch));
  return batches;
}

Ids flat(const std::vector<Ids>& batches) {
  Ids all;
  for (const auto& batch : batches) test::append(all, batch);
  return all;
}

template <class F>
std::string failure_of(F&& f, Errc code) {
  try {
    f();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), code) << failure.what();
    return failure.what();
  }
  return "nothing was thrown";
}

TEST(DataIterator, GivesAllRowsInBatchesOfTheAskedSize) {
  const auto iterator = over({10, 0, 7});
  for (const int prefetch : {0, 1, 3}) {
    const auto batches = batches_of(iterator, {.batch_size = 5, .prefetch_batches = prefetch});
    ASSERT_EQ(batches.size(), 4u) << prefetch;
    EXPECT_EQ(flat(batches), counting(0, 17));
    EXPECT_EQ(batches.back().size(), 2u);
  }
  EXPECT_EQ(iterator.epoch(), 3);
  EXPECT_EQ(iterator.num_batches(5), 4);
  EXPECT_EQ(batches_of(iterator, {.batch_size = 5, .drop_last = true}).size(), 3u);
  EXPECT_EQ(iterator.epoch(), 4);
}

TEST(DataIterator, KnowsTheLastBatchAlsoWhereAFilterHidesIt) {
  const auto even_then_nothing = Dataset{numbers({40})}.filter(std::function<bool(const Row&)>{[](const Row& row) { return row.get<std::int64_t>("id") < 12; }});
  for (const auto& [rows, expected] : {std::pair{Dataset{numbers({40})}, 10}, std::pair{even_then_nothing, 3}}) {
    const DataIterator iterator{rows, small()};
    int batches = 0, last = 0;
    auto range = iterator.iter_batches({.batch_size = 4});
    for ([[maybe_unused]] const auto& batch : range) {
      ++batches;
      last += iterator.state().end_of_dataloader;
      EXPECT_EQ(iterator.state().end_of_dataloader, batches == expected);
    }
    EXPECT_EQ(batches, expected);
    EXPECT_EQ(last, 1);
    EXPECT_FALSE(iterator.state().end_of_dataloader);
  }
}

TEST(DataIterator, GivesRanksTheSameNumberOfStepsAndSaysWhatIsPadding) {
  for (const int ranks : {2, 3, 7}) {
    Ids real;
    std::vector<std::size_t> steps;
    for (int r = 0; r < ranks; ++r) {
      const auto iterator = over({5, 6}, small(r, ranks));
      steps.push_back(0);
      auto range = iterator.iter_batches({.batch_size = 2});
      for (const auto& batch : range) {
        ++steps.back();
        auto ids = ids_of(batch);
        ids.resize(static_cast<std::size_t>(iterator.training_stream()->real_rows().value()));
        test::append(real, ids);
      }
    }
    EXPECT_THAT(steps, testing::Each(steps[0]));
    std::sort(real.begin(), real.end());
    EXPECT_EQ(real, counting(0, 11)) << ranks;
  }
  EXPECT_FALSE(over({5, 6}, small(0, 2, SplitEqual::Truncate)).training_stream()->real_rows());
}

TEST(DataIterator, ShufflesLocallyWithoutAShortBatchInTheMiddle) {
  const auto iterator = over({100, 57});
  const IterBatchesOptions options{.batch_size = 10, .local_shuffle_buffer_size = 33, .local_shuffle_seed = 5};
  const auto first = batches_of(iterator, options), second = batches_of(iterator, options);
  for (std::size_t b = 0; b + 1 < first.size(); ++b) EXPECT_EQ(first[b].size(), 10u);
  EXPECT_NE(flat(first), counting(0, 157));
  EXPECT_NE(flat(first), flat(second));
  auto all = flat(first);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, counting(0, 157));
  EXPECT_EQ(flat(batches_of(over({100, 57}), options)), flat(first));  // the same seed, the same order
}

// After every single batch: the rest on as many ranks is the same, on another number it is every row once.
TEST(DataIterator, GoesOnAfterEveryBatchOnAnyNumberOfRanks) {
  const std::vector<std::int64_t> sizes{13, 1, 0, 16};
  const IterBatchesOptions options{.batch_size = 3, .prefetch_batches = 2, .local_shuffle_buffer_size = 7, .local_shuffle_seed = 3};
  constexpr int ranks = 2;
  for (std::size_t stop = 0; stop <= 5; ++stop) {
    std::vector<std::string> positions;
    std::vector<std::vector<Ids>> rest(ranks);
    Ids seen;
    for (int r = 0; r < ranks; ++r) {
      const auto iterator = over(sizes, small(r, ranks));
      auto range = iterator.iter_batches(options);
      std::size_t count = 0;
      if (stop == 0) positions.push_back(iterator.training_stream()->position());
      for (const auto& batch : range) {
        const auto real = static_cast<std::size_t>(iterator.training_stream()->real_rows().value());
        auto ids = ids_of(batch);
        if (++count > stop) rest[static_cast<std::size_t>(r)].push_back(ids);
        ids.resize(real);
        if (count <= stop) test::append(seen, ids);
        if (count == stop) positions.push_back(iterator.training_stream()->position());
      }
    }
    for (int r = 0; r < ranks; ++r) {
      const auto iterator = over(sizes, small(r, ranks));
      iterator.training_stream()->resume(positions);
      EXPECT_EQ(batches_of(iterator, options), rest[static_cast<std::size_t>(r)]) << "rank " << r << " after batch " << stop;
      EXPECT_EQ(iterator.epoch(), 1);
    }
    for (const int others : {1, 3}) {
      auto all = seen;
      for (int r = 0; r < others; ++r) {
        const auto iterator = over(sizes, small(r, others, SplitEqual::Uneven));
        iterator.training_stream()->resume(positions);
        test::append(all, flat(batches_of(iterator, options)));
      }
      std::sort(all.begin(), all.end());
      EXPECT_EQ(all, counting(0, 30)) << others << " ranks after batch " << stop;
    }
  }
}

TEST(DataIterator, BeginsAnEpochAgainThatWasLeftUnlessToldOtherwise) {
  auto iterator = over({20});
  {
    auto range = iterator.iter_batches({.batch_size = 4});
    auto it = range.begin();
    ++it;
    EXPECT_THAT(ids_of(*it), ElementsAre(4, 5, 6, 7));
  }
  EXPECT_EQ(iterator.epoch(), 0);
  const auto left = iterator.training_stream()->position();
  EXPECT_EQ(flat(batches_of(iterator, {.batch_size = 4})), counting(0, 20));
  iterator.training_stream()->resume({left});
  EXPECT_EQ(flat(batches_of(iterator, {.batch_size = 6})), counting(8, 20));
  iterator.set_epoch(7);
  EXPECT_EQ(flat(batches_of(iterator, {.batch_size = 6})), counting(0, 20));
  EXPECT_EQ(iterator.epoch(), 8);
}

TEST(DataIterator, RefusesPositionsThatMeanNothing) {
  const auto iterator = over({20});
  auto& stream = *iterator.training_stream();
  EXPECT_THAT(failure_of([&] { stream.resume({"no json"}); }, Errc::FileCorrupt), HasSubstr("rank 0"));
  EXPECT_THAT(failure_of([&] { stream.resume({R"({"version": 1})"}); }, Errc::FileCorrupt), HasSubstr("'dataset'"));
  EXPECT_THAT(failure_of([&] { stream.resume({}); }, Errc::InvalidArgument), HasSubstr("no position"));
}

TEST(DataIterator, NamesOptionsThatAreNoGood) {
  const auto iterator = over({20});
  EXPECT_THAT(failure_of([&] { (void)iterator.iter_batches({.batch_size = 0}); }, Errc::InvalidArgument), HasSubstr("batch_size = 0"));
  EXPECT_THAT(failure_of([&] { (void)iterator.iter_batches({.collate_fn = [](const BatchColumns& c) { return c.to_batch(); }, .dtypes = {{"id", at::kInt}}}); }, Errc::InvalidArgument),
              HasSubstr("collate_fn and dtypes"));
  EXPECT_THAT(failure_of([&] { (void)iterator.iter_batches({.local_shuffle_seed = 3}); }, Errc::InvalidArgument), HasSubstr("local_shuffle_buffer_size"));
}

TEST(DataIterator, BringsErrorsToTheLoopAtTheirPlace) {
  NumbersSource::Options options;
  options.sizes = {20, 20};
  options.fails_after = 15;
  const DataIterator iterator{Dataset{numbers(options)}, small()};
  for (const int prefetch : {0, 2}) {
    Ids seen;
    EXPECT_THAT(failure_of(
                    [&] {
                      auto range = iterator.iter_batches({.batch_size = 4, .prefetch_batches = prefetch});
                      for (const auto& batch : range) test::append(seen, ids_of(batch));
                    },
                    Errc::FileCorrupt),
                HasSubstr("part0"));
    EXPECT_EQ(seen, counting(0, 8)) << prefetch;  // the block of 8 rows after them breaks
  }
  const auto good = over({20});
  EXPECT_THAT(failure_of(
                  [&] {
                    auto range = good.iter_batches({.collate_fn = [](const BatchColumns&) -> Batch { throw std::runtime_error("no such word"); }});
                    (void)range.begin();
                  },
                  Errc::DataMalformed),
              HasSubstr("collate_fn: no such word"));
}

TEST(DataIterator, LeavesNoReaderWhenItsLoopEndsEarly) {
  const auto source = numbers({500, 500});
  {
    const DataIterator iterator{Dataset{source}, small()};
    auto range = iterator.iter_batches({.batch_size = 4, .prefetch_batches = 4});
    (void)range.begin();
  }
  EXPECT_EQ(source->num_open, 0);
}

TEST(DataIterator, DoesNotReadAgainWhatIsMaterialized) {
  const auto source = numbers({50});
  const DataIterator iterator{Dataset{source}.materialize(), small()};
  const auto read = source->rows_read.load();
  for (int epoch = 0; epoch < 3; ++epoch) EXPECT_EQ(flat(batches_of(iterator, {.batch_size = 8})), counting(0, 50));
  EXPECT_EQ(source->rows_read, read);
}

TEST(DataIterator, SaysHowLongTheLoopWaited) {
  NumbersSource::Options options;
  options.sizes = {64};
  options.delay = std::chrono::milliseconds{5};
  auto setup = small();
  std::chrono::nanoseconds told{0};
  setup.waited = [&](std::chrono::nanoseconds time) { told += time; };
  const DataIterator iterator{Dataset{numbers(options)}, setup};
  (void)batches_of(iterator, {.batch_size = 8});
  EXPECT_EQ(iterator.batch_stats().num_batches, 8);
  EXPECT_EQ(iterator.batch_stats().num_samples, 64);
  EXPECT_GT(iterator.batch_stats().wait_share(), 0.5);  // nothing else was done
  EXPECT_GE(told, iterator.batch_stats().wait);
  EXPECT_THAT(iterator.stats(), testing::AllOf(HasSubstr("8 batches, 64 rows"), HasSubstr("stage")));
}

TEST(DataIterator, NamesTheStageThatStalls) {
  auto setup = small();
  setup.execution.stall_deadline = std::chrono::milliseconds{200};
  const auto end = std::make_shared<std::atomic<bool>>(false);  // its thread may outlive the stream
  const auto rows = Dataset{numbers({20})}.map_batches(
      [end](const std::shared_ptr<arrow::RecordBatch>& batch) {
        while (!*end) std::this_thread::sleep_for(std::chrono::milliseconds{5});
        return batch;
      },
      {.name = "sleepy", .concurrency = 1});
  const DataIterator iterator{rows, setup};
  EXPECT_THAT(failure_of(
                  [&] {
                    auto range = iterator.iter_batches({.batch_size = 4});
                    std::thread later{[&] {
                      std::this_thread::sleep_for(std::chrono::milliseconds{600});
                      *end = true;
                    }};
                    const std::unique_ptr<std::thread, void (*)(std::thread*)> joined{&later, [](std::thread* t) { t->join(); }};
                    (void)range.begin();
                  },
                  Errc::DeadlinePassed),
              HasSubstr("sleepy"));
}

// A device with memory of its own, whose copies are late: a batch that is used before it is there shows.
TEST(DataIterator, CopiesToADeviceBesideTheLoop) {
  const auto runtime = async_host_runtime();
  auto setup = small();
  setup.runtime = runtime.get();
  const DataIterator iterator{Dataset{numbers({300})}, setup};
  for (const bool early : {false, true}) {
    std::vector<Batch> kept;
    auto range = iterator.iter_batches({.batch_size = 16, .prefetch_batches = 3});
    for (const auto& batch : range) {
      kept.push_back(batch);
      if (early && kept.size() == 5) break;
      std::this_thread::sleep_for(std::chrono::microseconds{300});
    }
    Ids all;
    for (const auto& batch : kept) test::append(all, ids_of(batch));
    EXPECT_EQ(all, counting(0, early ? 80 : 300));
  }
}

// ---- columns --------------------------------------------------------------------------------------------------------

template <class Builder, class... Values>
std::shared_ptr<arrow::Array> array_of(Values... values) {
  Builder builder;
  (builder.Append(values).ok(), ...);
  return builder.Finish().ValueOrDie();
}

std::shared_ptr<arrow::RecordBatch> lists_and_text() {
  auto values = std::make_shared<arrow::Int64Builder>();
  arrow::ListBuilder lists{arrow::default_memory_pool(), values};
  for (const auto& row : {Ids{9}, Ids{1, 2, 3}, Ids{}, Ids{4, 5}}) {
    lists.Append().ok();
    values->AppendValues(row).ok();
  }
  auto pixels = std::make_shared<arrow::FloatBuilder>();
  arrow::FixedSizeListBuilder points{arrow::default_memory_pool(), pixels, 2};
  for (int i = 0; i < 4; ++i) {
    points.Append().ok();
    pixels->AppendValues({static_cast<float>(i), 0.5F}).ok();
  }
  const arrow::ArrayVector columns{lists.Finish().ValueOrDie(), points.Finish().ValueOrDie(), array_of<arrow::StringBuilder>("d", "ä b", "", "c"),
                                   array_of<arrow::UInt32Builder>(0U, 4'000'000'000U, 1U, 2U), array_of<arrow::BooleanBuilder>(false, true, true, false)};
  const auto schema = arrow::schema({arrow::field("ids", columns[0]->type()), arrow::field("point", columns[1]->type()), arrow::field("text", arrow::utf8()),
                                     arrow::field("big", arrow::uint32()), arrow::field("flag", arrow::boolean())});
  return arrow::RecordBatch::Make(schema, 4, columns);
}

Ids values_of(const at::Tensor& tensor) {
  const auto flat = tensor.to(at::kLong).contiguous();
  return {flat.const_data_ptr<std::int64_t>(), flat.const_data_ptr<std::int64_t>() + flat.numel()};
}

TEST(BatchColumns, MakesTensorsOfColumnsAlsoFromASlice) {
  const BatchColumns columns{lists_and_text()->Slice(1, 3), {{"ids", {.value = -1, .multiple_of = 4}}}};
  EXPECT_EQ(columns.tensor("ids").sizes().vec(), (Ids{3, 4}));
  EXPECT_EQ(values_of(columns.tensor("ids")), (Ids{1, 2, 3, -1, -1, -1, -1, -1, 4, 5, -1, -1}));
  EXPECT_EQ(values_of(columns.lengths("ids")), (Ids{3, 0, 2}));
  EXPECT_EQ(columns.tensor("point").sizes().vec(), (Ids{3, 2}));
  EXPECT_EQ(values_of(columns.tensor("point").select(1, 0)), (Ids{1, 2, 3}));
  EXPECT_EQ(columns.tensor("point").scalar_type(), at::kFloat);
  EXPECT_THAT(columns.strings("text"), ElementsAre("ä b", "", "c"));
  EXPECT_EQ(values_of(columns.tensor("big")), (Ids{4'000'000'000, 1, 2}));
  EXPECT_EQ(values_of(columns.tensor("flag")), (Ids{1, 1, 0}));
  EXPECT_EQ(columns.tensor("flag").scalar_type(), at::kBool);
}

TEST(BatchColumns, PadsOnTheLeftAndToALength) {
  const BatchColumns columns{lists_and_text(), {{"ids", {.length = 4, .on_left = true}}}};
  EXPECT_EQ(values_of(columns.tensor("ids")), (Ids{0, 0, 0, 9, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 4, 5}));
  const BatchColumns narrow{lists_and_text(), {{"ids", {.length = 2}}}};
  EXPECT_THAT(failure_of([&] { (void)narrow.tensor("ids"); }, Errc::DataMalformed), HasSubstr("a list of 3"));
}

TEST(BatchColumns, SaysWhatNoTensorHolds) {
  const BatchColumns columns{lists_and_text()};
  EXPECT_THAT(failure_of([&] { (void)columns.to_batch(); }, Errc::Unsupported), testing::AllOf(HasSubstr("'text'"), HasSubstr("collate_fn")));
  EXPECT_THAT(failure_of([&] { (void)columns.tensor("idz"); }, Errc::NotFound), HasSubstr("it has: ids, point"));
  EXPECT_THAT(failure_of([&] { (void)columns.strings("big"); }, Errc::InvalidArgument), HasSubstr("not text"));
  arrow::Int64Builder builder;
  builder.AppendValues({1, 2, 3}).ok();
  builder.AppendNull().ok();
  const BatchColumns holes{arrow::RecordBatch::Make(arrow::schema({arrow::field("id", arrow::int64())}), 4, {builder.Finish().ValueOrDie()})};
  EXPECT_THAT(failure_of([&] { (void)holes.tensor("id"); }, Errc::DataMalformed), HasSubstr("row 3"));
}

}  // namespace
}  // namespace troupe

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <fstream>

#include "numbers_source.hpp"

namespace troupe {
namespace {

using test::append;
using test::counting;
using test::drain;
using test::ids_of;
using test::numbers;
using test::small_blocks;

std::size_t entries(const char* folder) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator{folder}, {}));
}

/// Threads and file descriptors are as many at the end as at the beginning.
class LeakCheck {
 public:
  LeakCheck() : threads_(entries("/proc/self/task")), files_(entries("/proc/self/fd")) {}
  ~LeakCheck() {
    // A joined thread may still be listed for a moment.
    for (int i = 0; i < 100 && entries("/proc/self/task") > threads_; ++i) std::this_thread::sleep_for(std::chrono::milliseconds{10});
    EXPECT_LE(entries("/proc/self/task"), threads_);
    EXPECT_LE(entries("/proc/self/fd"), files_);
  }

 private:
  std::size_t threads_, files_;
};

/// The ids before the error, and the error.
std::pair<std::vector<std::int64_t>, std::string> until_error(DatasetStream& stream, std::int64_t batch_size = 0) {
  std::vector<std::int64_t> ids;
  try {
    while (const auto batch = batch_size > 0 ? stream.next_batch(batch_size) : stream.next()) append(ids, ids_of(*batch));
  } catch (const Failure& failure) {
    return {ids, failure.what()};
  }
  return {ids, ""};
}

StepOptions named(const std::string& name, int concurrency) {
  StepOptions options;
  options.name = name;
  options.concurrency = concurrency;
  return options;
}

BatchFunction same() {
  return [](const std::shared_ptr<arrow::RecordBatch>& rows) { return rows; };
}

TEST(DatasetFaults, GivesAllRowsBeforeAFragmentThatCannotBeOpened) {
  const LeakCheck check;
  for (std::int64_t fails_at = 0; fails_at <= 5; ++fails_at) {
    test::NumbersSource::Options options;
    options.sizes = {20, 20, 20, 20, 20};
    options.fails_at = fails_at;
    const auto source = numbers(options);
    for (const int concurrency : {0, 2}) {
      auto stream = Dataset{source}.map_batches(same(), named("stage", concurrency)).stream(small_blocks());
      const auto [ids, error] = until_error(stream);
      EXPECT_EQ(ids, counting(0, std::min<std::int64_t>(fails_at * 20, 100)));
      EXPECT_EQ(error, fails_at < 5 ? "part" + std::to_string(fails_at) + " is gone" : "");
      if (fails_at < 5) {
        EXPECT_THROW(static_cast<void>(stream.next()), Failure) << "said once only";
      }
    }
    EXPECT_EQ(source->num_open, 0);
  }
}

TEST(DatasetFaults, GivesAllRowsBeforeOneThatCannotBeRead) {
  const LeakCheck check;
  for (std::int64_t fails_after = 0; fails_after <= 40; fails_after += 4) {
    test::NumbersSource::Options options;
    options.sizes = {40, 40};
    options.cut = 4;
    options.fails_after = fails_after;
    auto stream = Dataset{numbers(options)}.stream(small_blocks());
    const auto [ids, error] = until_error(stream);
    EXPECT_EQ(ids, counting(0, fails_after == 40 ? 80 : fails_after / 8 * 8)) << fails_after;
    EXPECT_EQ(error.empty(), fails_after == 40) << error;
    // The cursor stands where the rows ended: reading goes on from there once the file is whole again.
    options.fails_after = -1;
    auto again = Dataset{numbers(options)}.resume({stream.cursor()}, small_blocks());
    EXPECT_EQ(drain(again), counting(static_cast<std::int64_t>(ids.size()), 80));
  }
}

TEST(DatasetFaults, GivesAllRowsBeforeABlockAtWhichAStepThrows) {
  const LeakCheck check;
  for (const int concurrency : {0, 1, 3}) {
    for (std::int64_t bad = 0; bad < 64; bad += 8) {
      const auto throwing = [bad](const std::shared_ptr<arrow::RecordBatch>& rows) {
        if (ids_of(*rows).front() == bad) throw std::runtime_error{"no such token"};
        return rows;
      };
      auto stream = Dataset{numbers({24, 40})}
                        .map_batches(same(), named("before", concurrency))
                        .map_batches(throwing, named("tokenize", concurrency))
                        .map_batches(same(), named("after", concurrency))
                        .shuffle_windows(8, 1)
                        .stream(small_blocks());
      const auto [ids, error] = until_error(stream);
      EXPECT_EQ(static_cast<std::int64_t>(ids.size()), bad);
      const std::string where = bad < 24 ? "part0, rows " + std::to_string(bad) : "part1, rows " + std::to_string(bad - 24);
      EXPECT_NE(error.find("step tokenize, " + where), std::string::npos) << error;
      EXPECT_NE(error.find("no such token"), std::string::npos) << error;
    }
  }
}

TEST(DatasetFaults, ABatchThatCannotBeFilledIsNotPassedOver) {
  test::NumbersSource::Options options;
  options.sizes = {20, 20};
  options.fails_at = 1;
  auto stream = Dataset{numbers(options)}.stream(small_blocks());
  const auto [ids, error] = until_error(stream, 6);
  EXPECT_EQ(ids, counting(0, 18));
  options.fails_at = -1;
  auto again = Dataset{numbers(options)}.resume({stream.cursor()}, small_blocks());
  EXPECT_EQ(drain(again), counting(18, 40));
}

TEST(DatasetFaults, LeavesNothingBehindWhereverTheConsumerStops) {
  const LeakCheck check;
  for (int taken = 0; taken < 12; ++taken) {
    const auto source = numbers(std::vector<std::int64_t>(50, 20));
    {
      auto options = small_blocks();
      options.num_epochs = -1;
      options.execution.num_readers = 3;
      auto stream = Dataset{source}.map_batches(same(), named("stage", 2)).shuffle_windows(30, 1).map_batches(same(), named("last", 2)).stream(options);
      for (int i = 0; i < taken; ++i) ASSERT_NE(stream.next(), nullptr);
    }
    EXPECT_EQ(source->num_open, 0) << taken;
  }
}

TEST(DatasetFaults, EndsAFullShuffleInTheMiddle) {
  const LeakCheck check;
  test::NumbersSource::Options options;
  options.sizes = {1'000'000};
  options.delay = std::chrono::microseconds{200};
  const auto began = std::chrono::steady_clock::now();
  {
    auto stream = Dataset{numbers(options)}.random_shuffle(1).stream(small_blocks(0, 2, SplitEqual::Pad));
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
  }
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds{20});
}

TEST(DatasetFaults, StopWakesAConsumerThatWaits) {
  test::NumbersSource::Options options;
  options.sizes = {10};
  options.delay = std::chrono::milliseconds{300};
  auto stream = Dataset{numbers(options)}.stream(small_blocks());
  std::jthread stopper{[&stream] {
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
    stream.stop();
  }};
  try {
    static_cast<void>(stream.next());
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::Cancelled);
  }
}

TEST(DatasetMemory, ASlowConsumerHoldsReadersToTheBudget) {
  test::NumbersSource::Options options;
  options.sizes = {4000, 4000, 4000, 4000};
  options.payload = 1000;  // 16 MB in all, 8 kB a block
  const auto source = numbers(options);
  auto stream_options = small_blocks();
  stream_options.execution.memory_budget_bytes = 200'000;
  stream_options.execution.num_readers = 3;
  StepOptions two = named("stage", 2);
  auto stream = Dataset{source}.map_batches(same(), two).stream(stream_options);
  ASSERT_NE(stream.next(), nullptr);
  std::this_thread::sleep_for(std::chrono::milliseconds{100});
  EXPECT_LE(stream.stats().held_bytes, 210'000);
  EXPECT_LE(source->rows_read, 300);
  EXPECT_EQ(drain(stream), counting(8, 16000));
  EXPECT_LE(stream.stats().peak_bytes, 230'000);
  EXPECT_EQ(stream.stats().held_bytes, 0);
}

TEST(DatasetMemory, GoesOnWhateverTheBudget) {
  for (const std::int64_t budget : {std::int64_t{1}, std::int64_t{5000}, std::int64_t{20'000}}) {
    test::NumbersSource::Options options;
    options.sizes = {100, 3, 100, 100, 0, 50};
    options.payload = 100;
    auto stream_options = small_blocks();
    stream_options.execution.memory_budget_bytes = budget;
    stream_options.execution.num_readers = 4;
    auto stream = Dataset{numbers(options)}.map_batches(same(), named("stage", 3)).shuffle_windows(40, 1).stream(stream_options);
    std::vector<std::int64_t> ids;
    while (const auto batch = stream.next_batch(50)) append(ids, ids_of(*batch));
    std::sort(ids.begin(), ids.end());
    EXPECT_EQ(ids, counting(0, 353)) << budget;
  }
}

TEST(DatasetMemory, AFunctionThatMakesMuchOfLittleStillSlowsTheReaders) {
  const auto source = numbers({100'000});
  auto stream_options = small_blocks();
  stream_options.execution.memory_budget_bytes = 1 << 20;
  const auto many = [](const Row& row) { return std::vector<Record>(100, Record{{"id", row.get<std::int64_t>("id")}, {"text", std::string(100, 'x')}}); };
  auto stream = Dataset{source}.flat_map(many).stream(stream_options);
  ASSERT_NE(stream.next(), nullptr);
  std::this_thread::sleep_for(std::chrono::milliseconds{200});
  EXPECT_LE(stream.stats().peak_bytes, 1'500'000);
  EXPECT_LE(source->rows_read, 500);
}

/// Lets a function wait until the test is done with it.
struct Gate {
  std::mutex mutex;
  std::condition_variable opened;
  bool open = false;
  void wait() {
    std::unique_lock lock{mutex};
    opened.wait(lock, [&] { return open; });
  }
  void release() {
    const std::lock_guard lock{mutex};
    open = true;
    opened.notify_all();
  }
};

TEST(DatasetStalls, NamesTheStageThatKeepsTheConsumerWaiting) {
  const auto gate = std::make_shared<Gate>();
  std::vector<std::string> warnings;
  auto options = small_blocks();
  options.execution.stall_warning = std::chrono::milliseconds{30};
  options.execution.on_warning = [&](const std::string& text) {
    warnings.push_back(text);
    if (warnings.size() == 2) gate->release();
  };
  const auto waiting = [gate](const std::shared_ptr<arrow::RecordBatch>& rows) {
    if (ids_of(*rows).front() == 16) gate->wait();
    return rows;
  };
  auto stream = Dataset{numbers({40})}.map_batches(same(), named("first", 1)).map_batches(waiting, named("slow", 1)).map_batches(same(), named("last", 1)).stream(options);
  EXPECT_EQ(drain(stream), counting(0, 40));
  ASSERT_GE(warnings.size(), 2u);
  EXPECT_NE(warnings[0].find("stage slow has worked on part0, row 16 on"), std::string::npos) << warnings[0];
}

TEST(DatasetStalls, NamesTheFragmentThatIsReadTooLong) {
  test::NumbersSource::Options source;
  source.sizes = {10};
  source.delay = std::chrono::milliseconds{200};
  auto options = small_blocks();
  options.execution.stall_deadline = std::chrono::milliseconds{40};
  auto stream = Dataset{numbers(source)}.map_batches(same(), named("stage", 1)).stream(options);
  try {
    static_cast<void>(stream.next());
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::DeadlinePassed);
    EXPECT_NE(std::string{failure.what()}.find("stage read has worked on part0"), std::string::npos) << failure.what();
  }
}

TEST(DatasetStalls, AFunctionThatNeverReturnsDoesNotKeepTheStreamFromEnding) {
  const auto gate = std::make_shared<Gate>();
  auto options = small_blocks();
  options.execution.stall_deadline = std::chrono::milliseconds{30};
  {
    auto stream = Dataset{numbers({40})}
                      .map_batches(
                          [gate](const std::shared_ptr<arrow::RecordBatch>& rows) {
                            gate->wait();
                            return rows;
                          },
                          named("stuck", 1))
                      .stream(options);
    EXPECT_THROW(static_cast<void>(stream.next()), Failure);
  }
  gate->release();  // the thread left behind holds what it needs, and ends now
  for (int i = 0; i < 100 && entries("/proc/self/task") > 1; ++i) std::this_thread::sleep_for(std::chrono::milliseconds{10});
}

TEST(DatasetBadRows, AreFatalOrSkippedAndCountedAsTheOptionsSay) {
  test::NumbersSource::Options source;
  source.sizes = {20, 20};
  source.bad = {3, 25, 39};
  auto options = small_blocks();
  std::mutex mutex;
  std::vector<std::string> warnings;
  options.execution.on_warning = [&](const std::string& text) {
    const std::lock_guard lock{mutex};
    warnings.push_back(text);
  };
  auto fatal = Dataset{numbers(source)}.stream(options);
  EXPECT_NE(until_error(fatal).second.find("part0, row 3: bad on purpose"), std::string::npos);

  options.execution.bad_rows = {BadRows::Policy::Skip, 3};
  auto skipping = Dataset{numbers(source)}.stream(options);
  auto expected = counting(0, 40);
  std::erase_if(expected, [&](std::int64_t id) { return source.bad.contains(id); });
  EXPECT_EQ(drain(skipping), expected);
  EXPECT_EQ(skipping.stats().skipped_rows, 3);
  EXPECT_EQ(warnings.size(), 3u);

  options.execution.bad_rows.limit = 2;
  auto limited = Dataset{numbers(source)}.stream(options);
  EXPECT_NE(until_error(limited).second.find("more than 2 bad rows"), std::string::npos);
}

TEST(DatasetBadRows, RowFunctionsHaveThemToo) {
  auto options = small_blocks();
  options.execution.bad_rows.policy = BadRows::Policy::Skip;
  std::mutex mutex;
  std::vector<std::string> warnings;
  options.execution.on_warning = [&](const std::string& text) {
    const std::lock_guard lock{mutex};
    warnings.push_back(text);
  };
  auto stream = Dataset{numbers({20})}
                    .map([](const Row& row) {
                      if (row.get<std::int64_t>("id") == 11) throw Failure{Errc::DataMalformed, "eleven"};
                      return Record{row};
                    })
                    .stream(options);
  auto expected = counting(0, 20);
  expected.erase(expected.begin() + 11);
  EXPECT_EQ(drain(stream), expected);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("part0, row 11: eleven"), std::string::npos) << warnings[0];
}

TEST(DatasetBadRows, LeaveRanksEquallyManyRows) {
  test::NumbersSource::Options source;
  source.sizes = {20, 20};
  source.bad = {3, 4, 25};
  const Dataset dataset{numbers(source)};
  for (int rank = 0; rank < 4; ++rank) {
    auto options = small_blocks(rank, 4, SplitEqual::Pad);
    options.execution.bad_rows.policy = BadRows::Policy::Skip;
    options.execution.on_warning = [](const std::string&) {};
    auto stream = dataset.stream(options);
    const auto ids = drain(stream);
    EXPECT_EQ(ids.size(), 10u) << rank;
    for (const auto id : ids) EXPECT_FALSE(source.bad.contains(id));
  }
}

TEST(DatasetFaults, TellsOfAFragmentThatHasFewerRowsThanItSaid) {
  struct Shrunk : test::NumbersSource {
    explicit Shrunk(Options options) : NumbersSource(std::move(options)), more(NumbersSource::fragments()) { more[0].num_rows = 30; }
    const std::vector<Fragment>& fragments() const override { return more; }
    std::vector<Fragment> more;
  };
  test::NumbersSource::Options options;
  options.sizes = {20};
  auto stream = Dataset{std::make_shared<Shrunk>(options)}.stream(small_blocks());
  const auto [ids, error] = until_error(stream);
  EXPECT_EQ(ids, counting(0, 20));
  EXPECT_NE(error.find("part0 ends after 20 rows, 30 were expected"), std::string::npos) << error;
}

}  // namespace
}  // namespace troupe

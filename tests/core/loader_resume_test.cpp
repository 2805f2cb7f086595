// Going on after every batch: on the same ranks and on others, for every kind of data set, with workers and batches in flight.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <troupe/data/samplers.hpp>
#include <troupe/errors.hpp>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

using Row = std::vector<std::int64_t>;
using namespace std::chrono_literals;

std::string failure_of(const std::function<void()>& work, Errc code = Errc::InvalidArgument) {
  try {
    work();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), code) << failure.what();
    return failure.what();
  }
  return "nothing was thrown";
}

/// Divides itself by taking every world_size-th sample.
class Dividing final : public CountingStream {
 public:
  explicit Dividing(std::int64_t size, std::int64_t first = 0, std::int64_t step = 1) : CountingStream((size - first + step - 1) / step), size_(size), first_(first), step_(step) {}
  [[nodiscard]] std::shared_ptr<const IterableDataset> shard(int rank, int world_size) const override { return std::make_shared<Dividing>(size_, rank, world_size); }

 protected:
  [[nodiscard]] TensorDict sample(std::int64_t index) const override { return CountingStream::sample(first_ + index * step_); }

 private:
  std::int64_t size_, first_, step_;
};

/// Batches of 1, 2, 3, 1, 2, 3, … samples.
class Growing final : public BatchSampler {
 public:
  explicit Growing(std::int64_t size) : size_(size) {}
  [[nodiscard]] Batches batches(std::int64_t epoch) override {
    Batches all;
    for (std::int64_t i = 0; i < size_;) {
      auto& batch = all.emplace_back();
      for (std::int64_t left = (std::ssize(all) - 1) % 3 + 1; left > 0 && i < size_; --left) batch.push_back((i++ + epoch) % size_);
    }
    return all;
  }
  [[nodiscard]] std::size_t size() const override { return static_cast<std::size_t>(size_); }

 private:
  std::int64_t size_;
};

struct Kind {
  const char* name;
  std::function<DataLoader(std::int64_t n, std::int64_t batch_size, int workers)> make;
  DataLoaderConfiguration configuration;
  bool any_ranks = true;  // goes on with another number of them
};

std::vector<Kind> kinds() {
  const auto stream = [](bool position) {
    return [position](std::int64_t n, std::int64_t size, int workers) { return DataLoader{std::make_shared<CountingStream>(n, position), {.batch_size = size, .num_workers = workers}}; };
  };
  const auto map = [](std::int64_t n, std::int64_t size, int workers) { return DataLoader{counting(n), {.batch_size = size, .shuffle = true, .seed = 4, .num_workers = workers}}; };
  return {{"map", map, {}},
          {"map, uneven", map, {.even_batches = false}},
          {"map, dispatched", map, {.dispatch_batches = true}},
          {"weighted sampler",
           [](std::int64_t n, std::int64_t size, int workers) {
             auto sampler = std::make_shared<WeightedRandomSampler>(std::vector<double>(static_cast<std::size_t>(n), 1.0), static_cast<std::size_t>(n), true, 9);
             return DataLoader{counting(n), {.batch_size = size, .num_workers = workers, .sampler = std::move(sampler)}};
           },
           {}},
          {"batches of their own length",
           [](std::int64_t n, std::int64_t, int workers) { return DataLoader{counting(n), {.num_workers = workers, .batch_sampler = std::make_shared<Growing>(n)}}; },
           {.even_batches = false}},
          {"stream", stream(true), {.dispatch_batches = false}},
          {"stream without a position", stream(false), {.dispatch_batches = false}},
          {"stream, dispatched", stream(true), {}},
          {"stream that divides itself", [](std::int64_t n, std::int64_t size, int workers) { return DataLoader{std::make_shared<Dividing>(n), {.batch_size = size, .num_workers = workers}}; }, {}, false}};
}

struct Rest {
  std::vector<std::string> states;  // of each rank, when it was left
  Row before, after;                // samples handed out, all ranks, in rounds
};

/// An epoch of all ranks that begins in `states` and is left after `rounds` batches (-1: not).
Rest run(const Kind& kind, std::int64_t n, std::int64_t batch_size, int world, int workers, const std::vector<std::string>& states, std::int64_t rounds) {
  std::vector<Batches> got(static_cast<std::size_t>(world));
  Rest rest;
  rest.states.resize(got.size());
  on_ranks(world, [&](int rank, DataLoader::BroadcastBytes broadcast) {
    auto loader = kind.make(n, batch_size, workers);
    const auto r = static_cast<std::size_t>(rank);
    loader.shard(rank, world, kind.configuration, 0, std::move(broadcast));
    loader.set_epoch(1);
    if (!states.empty()) loader.load_state_dict(states[states.size() == got.size() ? r : 0]);
    rest.states[r] = loader.state_dict();
    if (rounds == 0) return;
    std::int64_t count = 0;
    for (const auto& batch : loader) {
      got[r].push_back(indices(batch));
      rest.states[r] = loader.state_dict();
      if (++count == rounds) break;
    }
  });
  for (std::size_t s = 0, more = 1; more; ++s) {
    more = 0;
    for (const auto& rank : got) {
      if (s >= rank.size()) continue;
      rest.before.insert(rest.before.end(), rank[s].begin(), rank[s].end());
      more = 1;
    }
  }
  return rest;
}

TEST(LoaderResume, GoesOnAfterEveryBatchOnTheSameRanks) {
  for (const auto& kind : kinds()) {
    for (const int world : {1, 3}) {
      for (const int workers : {0, 2}) {
        SCOPED_TRACE(std::string{kind.name} + ", world " + std::to_string(world) + ", workers " + std::to_string(workers));
        const auto whole = run(kind, 23, 2, world, workers, {}, -1).before;
        for (std::int64_t done = 0; done <= 5; ++done) {
          const auto begun = run(kind, 23, 2, world, workers, {}, done);
          auto all = begun.before;
          const auto after = run(kind, 23, 2, world, workers, begun.states, -1).before;
          all.insert(all.end(), after.begin(), after.end());
          ASSERT_EQ(all, whole) << "left after " << done;
        }
      }
    }
  }
}

TEST(LoaderResume, SeesEverySampleOnceOnOtherRanksAndBatchSizes) {
  for (const auto& kind : kinds()) {
    if (!kind.any_ranks) continue;
    const auto order = run(kind, 29, 1, 1, 0, {}, -1).before;
    for (const auto& [before, after] : {std::pair{3, 2}, {2, 3}, {1, 4}, {4, 1}}) {
      for (std::int64_t done = 0; done <= 4; ++done) {
        SCOPED_TRACE(std::string{kind.name} + ", " + std::to_string(before) + " to " + std::to_string(after) + " ranks after " + std::to_string(done));
        const auto begun = run(kind, 29, 2, before, 1, {}, done);
        auto all = begun.before;
        const auto rest = run(kind, 29, 3, after, 0, {begun.states[0]}, -1).before;
        all.insert(all.end(), rest.begin(), rest.end());
        ASSERT_GE(all.size(), order.size());
        all.resize(order.size());  // what evens out the last batches comes again from the beginning
        ASSERT_EQ(all, order);
      }
    }
  }
}

TEST(LoaderResume, RefusesAPositionOfOtherRanksOwn) {
  DataLoader one{std::make_shared<Dividing>(20), {.batch_size = 2}}, other{std::make_shared<Dividing>(20), {.batch_size = 2}};
  one.shard(0, 2, {}, 0);
  other.shard(0, 3, {}, 0);
  EXPECT_TRUE(one.has_own_position());
  EXPECT_NE(failure_of([&] { other.load_state_dict(one.state_dict()); }, Errc::Unsupported).find("rank 0 of 2"), std::string::npos);
}

TEST(LoaderResume, RefusesBytesThatAreNoState) {
  DataLoader loader{counting(4), {}};
  const auto good = loader.state_dict();
  for (const auto& bad : {std::string{}, std::string{"{}"}, std::string{"\xff\x00", 2}, good.substr(1), std::string{"[1]"}})
    EXPECT_NE(failure_of([&] { loader.load_state_dict(bad); }, Errc::DataMalformed), "nothing was thrown");
  loader.load_state_dict(good);
}

TEST(LoaderResume, KeepsTheSeedThatWasDrawn) {
  DataLoader loader{counting(30), {.batch_size = 5, .shuffle = true}};
  auto it = loader.begin();
  const auto state = loader.state_dict();
  Batches rest;
  for (++it; it != loader.end(); ++it) rest.push_back(indices(*it));
  DataLoader again{counting(30), {.batch_size = 5, .shuffle = true}};
  again.load_state_dict(state);
  EXPECT_EQ(epoch_of(again), rest);
}

/// Sample 0 and every fifth take long.
class Slow final : public Counting {
 public:
  using Counting::Counting;
  [[nodiscard]] TensorDict get(std::size_t index) const override {
    if (index % 5 == 0) std::this_thread::sleep_for(20ms);
    return Counting::get(index);
  }
};

TEST(LoaderResume, IsExactWithoutOrderToo) {
  const auto make = [] { return DataLoader{std::make_shared<Slow>(20), {.batch_size = 1, .num_workers = 4, .in_order = false}}; };
  auto loader = make();
  bool jumped = false;
  for (int leave = 1; leave <= 20; leave += 3) {
    std::multiset<std::int64_t> seen;
    auto first = make(), second = make();
    int count = 0;
    std::string state;
    for (const auto& batch : first) {
      seen.insert(indices(batch)[0]);
      state = first.state_dict();
      jumped = jumped || !first.position().ahead.empty();
      if (++count == leave) break;
    }
    second.load_state_dict(state);
    for (const auto& batch : second) seen.insert(indices(batch)[0]);
    EXPECT_EQ(seen.size(), 20u) << leave;
    EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(), 20u) << leave;
  }
  EXPECT_TRUE(jumped);
}

// Of streams and options.

TEST(LoaderStream, NamesTheSampleThatCannotBeReadWhereverItIs) {
  class Broken final : public CountingStream {
   public:
    Broken(std::int64_t size, std::int64_t at) : CountingStream(size), at_(at) {}

   protected:
    [[nodiscard]] TensorDict sample(std::int64_t index) const override {
      if (index == at_) throw std::runtime_error("bad row");
      return CountingStream::sample(index);
    }

   private:
    std::int64_t at_;
  };
  for (const int workers : {0, 2}) {
    for (std::int64_t at = 0; at < 6; ++at) {
      DataLoader loader{std::make_shared<Broken>(6, at), {.batch_size = 2, .num_workers = workers}};
      Batches before;
      const auto text = failure_of([&] { for (const auto& batch : loader) before.push_back(indices(batch)); }, Errc::DataMalformed);
      EXPECT_EQ(text, "sample " + std::to_string(at) + ": bad row");
      EXPECT_EQ(std::ssize(before), at / 2);
    }
  }
}

TEST(LoaderStream, TellsAllRanksWhatRankZeroCannotRead) {
  class Broken final : public CountingStream {
   public:
    using CountingStream::CountingStream;

   protected:
    [[nodiscard]] TensorDict sample(std::int64_t index) const override {
      if (index == 5) throw Failure{Errc::FileCorrupt, "bad bytes"};
      return CountingStream::sample(index);
    }
  };
  on_ranks(2, [&](int rank, DataLoader::BroadcastBytes broadcast) {
    DataLoader loader{std::make_shared<Broken>(12), {.batch_size = 1}};
    loader.shard(rank, 2, {}, 0, std::move(broadcast));
    int count = 0;
    EXPECT_EQ(failure_of([&] { for ([[maybe_unused]] const auto& batch : loader) ++count; }, Errc::FileCorrupt), (rank ? "rank 0: sample 5: bad bytes" : "sample 5: bad bytes"));
    EXPECT_EQ(count, 2);
  });
}

TEST(LoaderStream, RefusesOptionsThatHaveNoMeaning) {
  const auto text = [](DataLoaderOptions options) {
    return failure_of([&] { (DataLoader{std::make_shared<CountingStream>(4), options}); });
  };
  EXPECT_NE(text({.shuffle = true}).find("shuffle"), std::string::npos);
  EXPECT_NE(text({.sampler = std::make_shared<SequentialSampler>(4)}).find("sampler"), std::string::npos);
  DataLoader unsized{std::make_shared<CountingStream>(4, true, false), {}};
  EXPECT_NE(failure_of([&] { (void)unsized.size(); }, Errc::Unsupported).find("does not say its size"), std::string::npos);
}

TEST(LoaderOptions, RefuseWhatContradictsItself) {
  const auto text = [](DataLoaderOptions options) { return failure_of([&] { (DataLoader{counting(4), options}); }); };
  const auto sampler = std::make_shared<SequentialSampler>(4);
  EXPECT_NE(text({.shuffle = true, .sampler = sampler}).find("leave shuffle alone"), std::string::npos);
  EXPECT_NE(text({.batch_size = 2, .batch_sampler = std::make_shared<Growing>(4)}).find("batch_sampler"), std::string::npos);
  EXPECT_NE(text({.batch_size = std::nullopt, .drop_last = true}).find("drop_last"), std::string::npos);
  EXPECT_NE(text({.timeout = 1ms}).find("num_workers"), std::string::npos);
  EXPECT_NE(text({.worker_processes = WorkerProcesses{"a"}}).find("num_workers"), std::string::npos);
  EXPECT_NE(text({.num_workers = 1, .collate = default_collate, .worker_processes = WorkerProcesses{"a"}}).find("factory 'a'"), std::string::npos);
  DataLoader lists{counting(4), {.batch_sampler = std::make_shared<Growing>(4)}};
  EXPECT_NE(failure_of([&] { lists.shard(0, 2, {}, 0); }).find("even_batches = false"), std::string::npos);
  EXPECT_NE(failure_of([&] { lists.shard(0, 2, {.split_batches = true}, 0); }).find("split_batches"), std::string::npos);
}

TEST(LoaderOptions, RefuseIndicesThatTheDataSetDoesNotHave) {
  class Wrong final : public Sampler {
   public:
    explicit Wrong(Row order, std::size_t size) : order_(std::move(order)), size_(size) {}
    [[nodiscard]] Row order(std::int64_t) override { return order_; }
    [[nodiscard]] std::size_t size() const override { return size_; }

   private:
    Row order_;
    std::size_t size_;
  };
  DataLoader beyond{counting(4), {.sampler = std::make_shared<Wrong>(Row{0, 4}, 2)}}, more{counting(4), {.sampler = std::make_shared<Wrong>(Row{0, 1}, 3)}};
  EXPECT_NE(failure_of([&] { (void)beyond.begin(); }).find("index 4"), std::string::npos);
  EXPECT_NE(failure_of([&] { (void)more.begin(); }).find("2 indices, but its size() is 3"), std::string::npos);
  DataLoader own{counting(4), {.batch_size = 2, .sampler = std::make_shared<Wrong>(Row{3, 1, 1}, 3)}};
  EXPECT_EQ(epoch_of(own), (Batches{{3, 1}, {1}}));
  EXPECT_EQ(own.num_samples(), 3);
}

TEST(LoaderOptions, WithoutABatchSizeEachSampleIsABatch) {
  for (const int workers : {0, 2}) {
    DataLoader map{counting(3), {.batch_size = std::nullopt, .num_workers = workers}};
    DataLoader stream{std::make_shared<CountingStream>(3), {.batch_size = std::nullopt, .num_workers = workers}};
    for (auto* loader : {&map, &stream}) EXPECT_EQ(epoch_of(*loader), (Batches{{0}, {1}, {2}}));
  }
}

TEST(LoaderOptions, ATimeoutNamesTheBatchThatDoesNotCome) {
  class Hanging final : public Counting {
   public:
    using Counting::Counting;
    [[nodiscard]] TensorDict get(std::size_t index) const override {
      if (index == 2) std::this_thread::sleep_for(400ms);
      return Counting::get(index);
    }
  };
  DataLoader loader{std::make_shared<Hanging>(4), {.num_workers = 1, .timeout = 100ms}};
  EXPECT_NE(failure_of([&] { (void)epoch_of(loader); }, Errc::DeadlinePassed).find("batch 2"), std::string::npos);
}

TEST(LoaderStats, CountTheTimeThatTheLoopWaits) {
  class Steady final : public Counting {
   public:
    using Counting::Counting;
    [[nodiscard]] TensorDict get(std::size_t index) const override {
      std::this_thread::sleep_for(10ms);
      return Counting::get(index);
    }
  };
  DataLoader direct{std::make_shared<Steady>(6), {.batch_size = 1}}, ahead{std::make_shared<Steady>(6), {.batch_size = 1, .num_workers = 2}};
  for (auto* loader : {&direct, &ahead}) {
    for ([[maybe_unused]] const auto& batch : *loader) std::this_thread::sleep_for(40ms);
    EXPECT_EQ(loader->stats().num_batches, 6);
    EXPECT_EQ(loader->stats().num_samples, 6);
    EXPECT_GE(loader->stats().first_wait, 10ms);
    EXPECT_GE(loader->stats().elapsed, 240ms);
  }
  EXPECT_GE(direct.stats().wait, 50ms);
  EXPECT_LT(ahead.stats().wait_share(), direct.stats().wait_share());
}

TEST(LoaderTransfer, BeginsWithABatchWhileTheOneBeforeIsInUse) {
  std::vector<std::string> log;
  DataLoader loader{counting(3), {.batch_size = 1}};
  loader.set_transfer([&](Batch batch) -> std::function<Batch()> {
    log.push_back("begin " + std::to_string(indices(batch)[0]));
    return [&log, batch] {
      log.push_back("arrive " + std::to_string(indices(batch)[0]));
      return batch;
    };
  });
  for (const auto& batch : loader) {
    log.push_back("use " + std::to_string(indices(batch)[0]));
    EXPECT_EQ(loader.state().end_of_dataloader, indices(batch)[0] == 2);
    EXPECT_EQ(loader.position().num_batches, indices(batch)[0] + 1);  // what is ahead does not count
  }
  EXPECT_EQ(log, (std::vector<std::string>{"begin 0", "begin 1", "arrive 0", "use 0", "begin 2", "arrive 1", "use 1", "arrive 2", "use 2"}));
}

}  // namespace
}  // namespace troupe

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <set>
#include <troupe/errors.hpp>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

std::string failure_of(const std::function<void()>& work, Errc code = Errc::InvalidArgument) {
  try {
    work();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), code);
    return failure.what();
  }
  return "nothing was thrown";
}

/// Sample i has a row of i + 1 numbers.
class Ragged : public Counting {
 public:
  using Counting::Counting;
  [[nodiscard]] TensorDict get(std::size_t index) const override {
    return {{"row", at::zeros({static_cast<std::int64_t>(index) + 1})}};
  }
};

TEST(DataLoader, GivesTheWholeDataSetInOrderBeforeItIsSharded) {
  DataLoader loader{counting(5), {.batch_size = 2}};
  EXPECT_EQ(loader.size(), 3);
  EXPECT_EQ(loader.dataset_size(), 5u);
  EXPECT_EQ(epoch_of(loader), (Batches{{0, 1}, {2, 3}, {4}}));
}

TEST(DataLoader, StacksSamplesAlongANewFirstDimension) {
  DataLoader loader{counting(3), {.batch_size = 3}};
  auto first = loader.begin();
  EXPECT_EQ((*first)["index"].sizes(), (at::IntArrayRef{3}));
  EXPECT_EQ(first->batch_size(), 3);
}

TEST(DataLoader, GivesOneShortBatchWhenTheDataSetIsSmallerThanABatch) {
  DataLoader loader{counting(2), {.batch_size = 8}};
  EXPECT_EQ(epoch_of(loader), (Batches{{0, 1}}));
  DataLoader dropping{counting(2), {.batch_size = 8, .drop_last = true}};
  EXPECT_EQ(epoch_of(dropping), Batches{});
}

TEST(DataLoader, HasNoBatchesOfAnEmptyDataSetAndRefusesToShuffleIt) {
  DataLoader loader{counting(0), {.batch_size = 2}};
  EXPECT_EQ(loader.size(), 0);
  EXPECT_EQ(epoch_of(loader), Batches{});
  loader.shard(1, 2, {}, 0);
  EXPECT_EQ(epoch_of(loader), Batches{});
  const auto text = failure_of([] { (DataLoader{counting(0), {.shuffle = true}}); });
  EXPECT_NE(text.find("empty data set"), std::string::npos) << text;
}

TEST(DataLoader, NamesTheOptionThatIsWrong) {
  const auto text = [](DataLoaderOptions options) {
    return failure_of([&] { (DataLoader{counting(4), options}); });
  };
  EXPECT_NE(text({.batch_size = 0}).find("batch_size = 0"), std::string::npos);
  EXPECT_NE(text({.num_workers = -1}).find("num_workers = -1"), std::string::npos);
  EXPECT_NE(text({.num_workers = 1000000}).find("num_workers = 1000000"), std::string::npos);
  EXPECT_NE(text({.prefetch_factor = 0}).find("prefetch_factor = 0"), std::string::npos);
  EXPECT_NE(failure_of([] { (DataLoader{std::shared_ptr<const MapDataset>{}, {}}); }).find("no data set"), std::string::npos);
  DataLoader loader{counting(4), {}};
  EXPECT_NE(failure_of([&] { loader.set_epoch(-1); }).find("epoch = -1"), std::string::npos);
  EXPECT_NE(failure_of([&] { loader.skip_first_batches(-2); }).find("-2"), std::string::npos);
  EXPECT_NE(failure_of([&] { loader.shard(3, 2, {}, 0); }).find("rank = 3"), std::string::npos);
}

TEST(DataLoader, ReshufflesEveryEpochAndRepeatsItselfWithTheSameSeed) {
  const DataLoaderOptions options{.batch_size = 3, .shuffle = true, .seed = 11};
  DataLoader a{counting(20), options}, b{counting(20), options};
  const auto first = epoch_of(a);
  const auto second = epoch_of(a);
  EXPECT_NE(first, second);
  EXPECT_EQ(epoch_of(b), first);
  EXPECT_EQ(epoch_of(b), second);
  b.set_epoch(0);
  EXPECT_EQ(epoch_of(b), first);
}

TEST(DataLoader, ShufflesFromTheSharedSeedOnEveryRankAlike) {
  for (int world = 1; world <= 4; ++world) {
    std::multiset<std::int64_t> seen;
    for (int rank = 0; rank < world; ++rank) {
      DataLoader loader{counting(24), {.batch_size = 2, .shuffle = true}};
      loader.shard(rank, world, {}, 99);
      for (const auto& batch : epoch_of(loader)) seen.insert(batch.begin(), batch.end());
    }
    EXPECT_EQ(seen.size(), 24u);
    EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(), 24u);
  }
}

TEST(DataLoader, KeepsTheGlobalOrderWhenTheNumberOfRanksChanges) {
  const auto global_batches = [](int world) {
    std::vector<DataLoader> loaders;
    for (int rank = 0; rank < world; ++rank) {
      loaders.emplace_back(counting(48),
                           DataLoaderOptions{.batch_size = 12, .shuffle = true, .seed = 5});
      loaders.back().shard(rank, world, {.split_batches = true}, 0);
    }
    Batches all;
    for (auto& loader : loaders) {
      const auto epoch = epoch_of(loader);
      all.resize(epoch.size());
      for (std::size_t s = 0; s < epoch.size(); ++s)
        all[s].insert(all[s].end(), epoch[s].begin(), epoch[s].end());
    }
    return all;
  };
  const auto one = global_batches(1);
  for (const int world : {2, 3, 4}) EXPECT_EQ(global_batches(world), one);
}

TEST(DataLoader, SaysWhileTheLastBatchIsProcessedThatItIsTheLast) {
  DataLoader loader{counting(7), {.batch_size = 2}};
  loader.shard(0, 2, {}, 0);
  std::vector<bool> ends;
  for ([[maybe_unused]] const auto& batch : loader) {
    ends.push_back(loader.state().end_of_dataloader);
    EXPECT_EQ(loader.state().remainder, 3);
  }
  EXPECT_EQ(ends, (std::vector<bool>{false, true}));
  EXPECT_FALSE(loader.state().end_of_dataloader);
}

TEST(DataLoader, DoesNotCountAnEpochThatWasLeftEarly) {
  const DataLoaderOptions options{.batch_size = 2, .shuffle = true, .seed = 1};
  DataLoader loader{counting(20), options}, other{counting(20), options};
  for ([[maybe_unused]] const auto& batch : loader) break;
  EXPECT_EQ(loader.epoch(), 0);
  EXPECT_FALSE(loader.state().end_of_dataloader);
  EXPECT_EQ(epoch_of(loader), epoch_of(other));
  EXPECT_EQ(loader.epoch(), 1);
}

TEST(DataLoader, GoesOnWhereItWasLeftWhenAskedTo) {
  DataLoader loader{counting(6), {.batch_size = 2}};
  for ([[maybe_unused]] const auto& batch : loader) break;
  EXPECT_EQ(loader.position(), (LoaderPosition{0, 1}));
  loader.resume(loader.position());
  EXPECT_EQ(epoch_of(loader), (Batches{{2, 3}, {4, 5}}));
  EXPECT_EQ(loader.position(), (LoaderPosition{1, 0}));
}

TEST(DataLoader, StartsTheEpochThatWasSetDuringAnotherOne) {
  DataLoader loader{counting(4), {.batch_size = 2}};
  for ([[maybe_unused]] const auto& batch : loader) loader.set_epoch(7);
  EXPECT_EQ(loader.epoch(), 7);
}

TEST(DataLoader, GoesOnWithTheSameBatchesAfterAResume) {
  const DataLoaderOptions options{.batch_size = 2, .shuffle = true, .seed = 8};
  DataLoader whole{counting(13), options};
  std::vector<Batches> epochs{epoch_of(whole), epoch_of(whole), epoch_of(whole)};
  for (std::int64_t done = 0; done <= whole.size() + 1; ++done) {
    DataLoader loader{counting(13), options};
    loader.resume({1, done});
    const auto skipped = std::min<std::ptrdiff_t>(done, std::ssize(epochs[1]));
    EXPECT_EQ(epoch_of(loader), Batches(epochs[1].begin() + skipped, epochs[1].end()));
    EXPECT_EQ(epoch_of(loader), epochs[2]);
  }
}

TEST(DataLoader, GoesOnAfterSamplesAsAfterBatchesWhereRanksAreTheSame) {
  const DataLoaderOptions options{.batch_size = 2, .shuffle = true, .seed = 8};
  for (const bool even : {true, false}) {
    for (std::int64_t done = 0; done <= 3; ++done) {
      for (int rank = 0; rank < 3; ++rank) {
        DataLoader by_batches{counting(13), options}, by_samples{counting(13), options};
        for (auto* loader : {&by_batches, &by_samples}) loader->shard(rank, 3, {.even_batches = even}, 0);
        by_batches.resume({1, done});
        by_samples.resume_after(1, by_batches.samples_consumed());
        EXPECT_EQ(by_samples.samples_consumed(), by_batches.samples_consumed());
        EXPECT_EQ(epoch_of(by_samples), epoch_of(by_batches)) << done << " of rank " << rank;
        EXPECT_EQ(by_samples.position(), by_batches.position());
      }
    }
  }
}

/// All ranks' next epoch, batch by batch, ranks in order; `consumed` counts what `steps` rounds of it took.
std::vector<std::int64_t> dealt(std::vector<DataLoader>& loaders, std::int64_t steps, std::int64_t& consumed) {
  std::vector<std::int64_t> all;
  std::vector<DataLoader::Iterator> at;
  for (auto& loader : loaders) at.push_back(loader.begin());
  for (std::int64_t s = 0; s < steps; ++s) {
    for (auto& it : at) {
      if (it == DataLoader::Iterator{}) continue;
      const auto batch = indices(*it);
      all.insert(all.end(), batch.begin(), batch.end());
    }
    if (s + 1 == steps) break;  // the loop is in this batch
    for (auto& it : at) {
      if (it != DataLoader::Iterator{}) ++it;
    }
  }
  consumed = loaders.front().samples_consumed();
  return all;
}

TEST(DataLoader, ChangedRanksNeitherRepeatNorMissASampleOfTheEpoch) {
  constexpr std::int64_t kSamples = 53;
  const auto ranks = [](int world, std::int64_t batch_size, bool even) {
    std::vector<DataLoader> loaders;
    for (int rank = 0; rank < world; ++rank) {
      loaders.emplace_back(counting(kSamples), DataLoaderOptions{.batch_size = batch_size, .shuffle = true, .seed = 3, .num_workers = rank % 2});
      loaders.back().shard(rank, world, {.even_batches = even}, 0);
      loaders.back().set_epoch(1);
    }
    return loaders;
  };
  auto alone = ranks(1, 1, true);
  std::vector<std::int64_t> order;
  for (const auto& batch : epoch_of(alone.front())) order.push_back(batch.front());
  for (const bool even : {true, false}) {
    for (const auto& [before, after] : {std::pair{4, 1}, {4, 3}, {1, 4}, {3, 2}}) {
      for (std::int64_t steps = 1; steps <= 5; ++steps) {
        // Interrupted twice: the second time in an epoch that was dealt anew.
        std::vector<std::int64_t> seen;
        std::int64_t consumed = 0;
        for (const auto& [world, batch_size, rounds] : {std::tuple{before, 2, steps}, {after, 3, std::int64_t{2}}, {before, 2, kSamples}}) {
          auto loaders = ranks(world, batch_size, even);
          for (auto& loader : loaders) loader.resume_after(1, consumed);
          const auto more = dealt(loaders, rounds, consumed);
          seen.insert(seen.end(), more.begin(), more.end());
          if (rounds == kSamples) {
            for (auto& loader : loaders) EXPECT_EQ(loader.position(), (LoaderPosition{2, 0}));
          }
        }
        // What even_batches adds to fill the last batch comes from the epoch's beginning.
        ASSERT_GE(seen.size(), order.size());
        if (!even) {
          EXPECT_EQ(seen.size(), order.size());
        }
        for (std::size_t i = 0; i < seen.size(); ++i) ASSERT_EQ(seen[i], order[i % order.size()]) << before << " to " << after << " ranks after " << steps << ", place " << i;
      }
    }
  }
}

TEST(DataLoader, RefusesToGoOnBehindTheLastSample) {
  DataLoader loader{counting(5), {.batch_size = 2}};
  EXPECT_NE(failure_of([&] { loader.resume_after(0, 7); }).find("cannot go on after 7"), std::string::npos);
  EXPECT_NE(failure_of([&] { loader.resume_after(0, -1); }).find("cannot go on after -1"), std::string::npos);
  loader.resume_after(0, 5);
  EXPECT_EQ(epoch_of(loader), Batches{});
  EXPECT_EQ(loader.epoch(), 1);
}

TEST(DataLoader, SkipsFirstBatchesOfTheNextEpochOnly) {
  DataLoader loader{counting(6), {.batch_size = 2}};
  loader.skip_first_batches(2);
  loader.set_epoch(4);
  EXPECT_EQ(epoch_of(loader), (Batches{{4, 5}}));
  EXPECT_EQ(epoch_of(loader), (Batches{{0, 1}, {2, 3}, {4, 5}}));
}

TEST(DataLoader, KnowsItsPositionWithinAndBetweenEpochs) {
  DataLoader loader{counting(4), {.batch_size = 2}};
  EXPECT_EQ(loader.position(), (LoaderPosition{0, 0}));
  std::int64_t done = 0;
  for ([[maybe_unused]] const auto& batch : loader) {
    EXPECT_EQ(loader.position(), (LoaderPosition{0, ++done}));
    EXPECT_EQ(loader.epoch(), 0);
  }
  EXPECT_EQ(loader.position(), (LoaderPosition{1, 0}));
}

TEST(DataLoader, TellsTheIndexOfTheSampleThatCannotBeLoaded) {
  class Broken : public Counting {
   public:
    using Counting::Counting;
    [[nodiscard]] TensorDict get(std::size_t index) const override {
      if (index == 5) throw std::runtime_error("no such row");
      if (index == 7) throw Failure{Errc::FileCorrupt, "bad bytes"};
      return Counting::get(index);
    }
  };
  for (const int workers : {0, 3}) {
    DataLoader loader{std::make_shared<Broken>(8), {.batch_size = 2, .num_workers = workers}};
    Batches before;
    const auto text = failure_of(
        [&] {
          for (const auto& batch : loader) before.push_back(indices(batch));
        },
        Errc::DataMalformed);
    EXPECT_EQ(text, "sample 5: no such row");
    EXPECT_EQ(before, (Batches{{0, 1}, {2, 3}}));
    loader.skip_first_batches(3);
    EXPECT_EQ(failure_of([&] { (void)loader.begin(); }, Errc::FileCorrupt), "sample 7: bad bytes");
  }
}

TEST(DataLoader, TellsWhichSamplesCannotBeStacked) {
  DataLoader loader{std::make_shared<Ragged>(3), {.batch_size = 3}};
  const auto text = failure_of([&] { (void)loader.begin(); }, Errc::DataMalformed);
  EXPECT_NE(text.find("collating samples 0, 1, 2: number 1 of the batch has 'row' of Float[2], "
                      "number 0 of Float[1]"),
            std::string::npos)
      << text;
}

TEST(DataLoader, UsesTheCollateItIsGiven) {
  const auto count = [](std::vector<TensorDict> samples) {
    return Batch{
        {"count", at::scalar_tensor(static_cast<std::int64_t>(samples.size()), at::kLong)}};
  };
  DataLoader loader{std::make_shared<Ragged>(5), {.batch_size = 3, .collate = count}};
  std::vector<std::int64_t> counts;
  for (const auto& batch : loader) counts.push_back(batch["count"].item<std::int64_t>());
  EXPECT_EQ(counts, (std::vector<std::int64_t>{3, 2}));
}

TEST(DataLoader, LeavesItsIteratorAloneWhenItMovesOrGoes) {
  DataLoader::Iterator it;
  {
    DataLoader loader{counting(4), {.batch_size = 2, .num_workers = 2}};
    it = loader.begin();
    const DataLoader moved = std::move(loader);
    EXPECT_EQ(moved.position(), (LoaderPosition{0, 1}));
  }
  EXPECT_EQ(indices(*it), (std::vector<std::int64_t>{0, 1}));
  EXPECT_EQ(indices(*++it), (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(++it, DataLoader::Iterator{});
}

}  // namespace
}  // namespace troupe

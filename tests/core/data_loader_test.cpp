#include <troupe/data/data_loader.hpp>
#include <troupe/errors.hpp>

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

namespace troupe {
namespace {

/// Sample i is {"i": i}; sample `bad` throws.
class Numbers final : public MapDataset {
 public:
  explicit Numbers(std::size_t n, std::size_t bad = SIZE_MAX) : n_(n), bad_(bad) {}
  std::size_t size() const override { return n_; }
  TensorDict get(std::size_t index) const override {
    if (index == bad_) throw std::runtime_error("unreadable");
    ++reads;
    return {{"i", at::scalar_tensor(static_cast<std::int64_t>(index), at::kLong)}};
  }
  mutable std::atomic<int> reads{0};

 private:
  std::size_t n_;
  std::size_t bad_;
};

std::vector<std::int64_t> values(const Batch& batch) {
  const auto& t = batch["i"];
  return {t.const_data_ptr<std::int64_t>(), t.const_data_ptr<std::int64_t>() + t.numel()};
}

std::vector<std::vector<std::int64_t>> epoch_of(DataLoader& loader) {
  std::vector<std::vector<std::int64_t>> batches;
  for (const auto& batch : loader) batches.push_back(values(batch));
  return batches;
}

using Batches = std::vector<std::vector<std::int64_t>>;

TEST(DataLoader, YieldsTheWholeDataSetBeforeItIsPrepared) {
  DataLoader loader{std::make_shared<Numbers>(7), {.batch_size = 3}};
  EXPECT_EQ(epoch_of(loader), (Batches{{0, 1, 2}, {3, 4, 5}, {6}}));
  EXPECT_EQ(loader.size(), 3);
}

TEST(DataLoader, KnowsTheLastBatchWhileItIsProcessed) {
  DataLoader loader{std::make_shared<Numbers>(7), {.batch_size = 3}};
  std::vector<bool> ends;
  for ([[maybe_unused]] const auto& batch : loader) ends.push_back(loader.state().end_of_dataloader);
  EXPECT_EQ(ends, (std::vector<bool>{false, false, true}));
  EXPECT_EQ(loader.state().remainder, 1);
}

TEST(DataLoader, ShufflesAnewEachEpochAndTheSameForASeed) {
  DataLoader first{std::make_shared<Numbers>(50), {.batch_size = 5, .shuffle = true, .seed = 3}};
  DataLoader second{std::make_shared<Numbers>(50), {.batch_size = 5, .shuffle = true, .seed = 3}};
  const auto epoch0 = epoch_of(first), epoch1 = epoch_of(first);
  EXPECT_NE(epoch0, epoch1);
  EXPECT_EQ(first.epoch(), 2);
  second.set_epoch(1);
  EXPECT_EQ(epoch_of(second), epoch1);
}

TEST(DataLoader, RanksShareAnEpochWithoutASeedOfTheirOwn) {
  for (int world = 1; world <= 4; ++world) {
    std::multiset<std::int64_t> seen;
    for (int rank = 0; rank < world; ++rank) {
      DataLoader loader{std::make_shared<Numbers>(24), {.batch_size = 2, .shuffle = true}};
      loader.shard(rank, world, {}, 99);
      EXPECT_EQ(loader.total_batch_size(), 2 * world);
      for (const auto& batch : epoch_of(loader)) seen.insert(batch.begin(), batch.end());
    }
    EXPECT_EQ(seen.size(), 24U);
    EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(), 24U) << "with " << world << " ranks";
  }
}

TEST(DataLoader, WorkersKeepTheOrder) {
  for (const int workers : {0, 1, 3}) {
    DataLoader loader{std::make_shared<Numbers>(101), {.batch_size = 4, .shuffle = true, .seed = 1, .num_workers = workers}};
    DataLoader plain{std::make_shared<Numbers>(101), {.batch_size = 4, .shuffle = true, .seed = 1}};
    EXPECT_EQ(epoch_of(loader), epoch_of(plain)) << workers << " workers";
  }
}

TEST(DataLoader, WorkersStayABoundedNumberAhead) {
  const auto numbers = std::make_shared<Numbers>(1'000);
  DataLoader loader{numbers, {.batch_size = 1, .num_workers = 2, .prefetch_factor = 3}};
  auto batch = loader.begin();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LE(numbers->reads, 2 + 2 * 3) << "two handed out or looked ahead, six ahead";
  EXPECT_EQ(values(*batch), std::vector<std::int64_t>{0});
}

TEST(DataLoader, StopsWhenTheReaderLeavesEarly) {
  DataLoader loader{std::make_shared<Numbers>(1'000), {.batch_size = 2, .num_workers = 2}};
  for ([[maybe_unused]] const auto& batch : loader) break;
  EXPECT_EQ(loader.epoch(), 0) << "an epoch that was not finished does not count";
  EXPECT_EQ(epoch_of(loader).size(), 500U);
}

TEST(DataLoader, NamesTheSampleThatCannotBeRead) {
  for (const int workers : {0, 2}) {
    DataLoader loader{std::make_shared<Numbers>(20, 13), {.batch_size = 2, .num_workers = workers}};
    try {
      (void)epoch_of(loader);
      FAIL() << "sample 13 was read";
    } catch (const Failure& failure) {
      EXPECT_NE(std::string(failure.what()).find("sample 13: unreadable"), std::string::npos) << failure.what();
    }
  }
}

TEST(DataLoader, ResumesWithinAnEpoch) {
  DataLoader whole{std::make_shared<Numbers>(40), {.batch_size = 4, .shuffle = true, .seed = 5}};
  const auto all = epoch_of(whole);
  DataLoader rest{std::make_shared<Numbers>(40), {.batch_size = 4, .shuffle = true, .seed = 5}};
  rest.skip_first_batches(6);
  EXPECT_EQ(epoch_of(rest), Batches(all.begin() + 6, all.end()));
  EXPECT_EQ(epoch_of(rest).size(), all.size()) << "the next epoch is whole again";
}

TEST(DataLoader, GivesNothingForAnEmptyDataSet) {
  DataLoader loader{std::make_shared<Numbers>(0), {.batch_size = 4}};
  EXPECT_TRUE(epoch_of(loader).empty());
  loader.shard(1, 2, {}, 0);
  EXPECT_TRUE(epoch_of(loader).empty());
}

TEST(DataLoader, RefusesOptionsOutOfRangeByName) {
  const auto numbers = std::make_shared<Numbers>(4);
  EXPECT_THROW((DataLoader{numbers, {.batch_size = 0}}), Failure);
  EXPECT_THROW((DataLoader{numbers, {.batch_size = 1, .num_workers = -1}}), Failure);
  EXPECT_THROW((DataLoader{numbers, {.batch_size = 1, .prefetch_factor = 0}}), Failure);
  DataLoader loader{numbers, {.batch_size = 4}};
  try {
    loader.shard(0, 3, {.split_batches = true}, 0);
    FAIL() << "4 was cut into 3";
  } catch (const Failure& failure) {
    EXPECT_NE(std::string(failure.what()).find("split_batches"), std::string::npos);
  }
}

TEST(DefaultCollate, NamesTheTensorWhoseShapesDiffer) {
  try {
    (void)default_collate({{{"x", at::zeros({2})}}, {{"x", at::zeros({3})}}});
    FAIL() << "shapes 2 and 3 were stacked";
  } catch (const Failure& failure) {
    EXPECT_NE(std::string(failure.what()).find("'x'"), std::string::npos);
  }
}

}  // namespace
}  // namespace troupe

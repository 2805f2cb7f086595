#include "../core/dataset/numbers_source.hpp"
#include "resume_run.hpp"

#include <troupe/data/training_stream.hpp>
#include <troupe/data_iterator.hpp>
#include <troupe/rank_datasets.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>

namespace troupe {
namespace {

using Ids = std::vector<std::int64_t>;

/// A context with data sets; forwards the rest.
class DataContext final : public test::FakeContext {
 public:
  DataContext(Communicator& communicator, DatasetFunctions functions, DataConfig data, std::filesystem::path storage = {}, SnapshotOptions snapshots = {})
      : FakeContext(communicator, std::move(storage), std::move(snapshots)), datasets_(std::move(functions), config_, std::move(data)) {}
  RankDatasets* datasets() noexcept override { return &datasets_; }
  Config config_{{"rows", 44}};

 private:
  RankDatasets datasets_;
};

const DatasetFunctions functions{{"train", [](const Config& config) {
                                    const auto rows = config.get<std::int64_t>("rows");
                                    return Dataset{test::numbers({rows / 3, rows - rows / 3})};
                                  }}};

void run(int ranks, const std::function<void(DataContext&)>& body, const DataConfig& data = {}, const std::filesystem::path& storage = {}, const SnapshotOptions& snapshots = {}) {
  test::run_ranks(ranks, [&](TrainContext& fake) {
    DataContext context{fake.communicator(), functions, data, storage, snapshots};
    body(context);
  });
}

TEST(AcceleratorStream, GathersForMetricsEveryRowOnce) {
  for (const auto equal : {SplitEqual::Pad, SplitEqual::Truncate}) {
    DataConfig data;
    data.options.equal = equal;
    run(3, [&](DataContext& context) {
      Accelerator accelerator{context};
      const auto train = context.dataset("train");
      Ids gathered;
      int steps = 0;
      auto range = train.iter_batches({.batch_size = 4});
      for (const auto& batch : range) {
        ++steps;
        const auto all = accelerator.gather_for_metrics(batch["id"]);
        test::append(gathered, {all.const_data_ptr<std::int64_t>(), all.const_data_ptr<std::int64_t>() + all.numel()});
      }
      EXPECT_EQ(steps, 4);
      std::sort(gathered.begin(), gathered.end());
      EXPECT_EQ(gathered, test::counting(0, equal == SplitEqual::Pad ? 44 : 42));
      EXPECT_EQ(context.steps_completed, 4);
    }, data);
  }
}

TEST(AcceleratorStream, EndsTheWindowWithTheLastBatch) {
  run(2, [](DataContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 4}};
    auto train = context.dataset("train");
    accelerator.prepare(train);  // may be said, and changes nothing
    std::vector<bool> syncs;
    auto range = train.iter_batches({.batch_size = 4});
    for ([[maybe_unused]] const auto& batch : range) {
      const auto window = accelerator.accumulate();
      syncs.push_back(accelerator.sync_gradients());
    }
    EXPECT_THAT(syncs, testing::ElementsAre(false, false, false, true, false, true));
  });
}

TEST(AcceleratorStream, CountsStepsWithoutAnAccelerator) {
  run(2, [](DataContext& context) {
    auto range = context.dataset("train").iter_batches({.batch_size = 4});
    for ([[maybe_unused]] const auto& batch : range) {
    }
    EXPECT_EQ(context.steps_completed, 6);
  });
}

TEST(AcceleratorStream, GivesEachRankAllRowsWhereItIsNotSplit) {
  DataConfig data;
  data.datasets_to_split = std::set<std::string>{};
  run(2, [](DataContext& context) {
    const auto train = context.dataset("train");
    EXPECT_EQ(train.num_rows(), 44);
    EXPECT_EQ(train.split().world_size, 1);
  }, data);
}

/// Rows that a rank is still to see, by loading the checkpoint and going on.
std::vector<Ids> rest_of(DataContext& context, const std::filesystem::path& checkpoint, bool opened_before, const IterBatchesOptions& options) {
  Accelerator accelerator{context};
  std::optional<DataIterator> train;
  if (opened_before) train = context.dataset("train");
  accelerator.load_state(checkpoint);
  if (!train) train = context.dataset("train");
  std::vector<Ids> rest;
  auto range = train->iter_batches(options);
  for (const auto& batch : range) {
    auto ids = Ids{batch["id"].const_data_ptr<std::int64_t>(), batch["id"].const_data_ptr<std::int64_t>() + batch["id"].numel()};
    if (const auto real = train->training_stream()->real_rows()) ids.resize(static_cast<std::size_t>(*real));
    rest.push_back(ids);
  }
  return rest;
}

TEST(AcceleratorStream, KeepsItsPositionInCheckpoints) {
  const test::TempDirectory directory;
  const auto checkpoint = directory.path / "checkpoint";
  const IterBatchesOptions options{.batch_size = 3, .prefetch_batches = 2, .local_shuffle_buffer_size = 8};
  Ids seen;
  std::vector<std::vector<Ids>> expected(2);
  std::mutex mutex;
  run(2, [&](DataContext& context) {
    Accelerator accelerator{context};
    const auto train = context.dataset("train");
    int step = 0;
    auto range = train.iter_batches(options);
    for (const auto& batch : range) {
      Ids ids{batch["id"].const_data_ptr<std::int64_t>(), batch["id"].const_data_ptr<std::int64_t>() + batch["id"].numel()};
      const std::lock_guard lock{mutex};
      if (++step <= 3) test::append(seen, ids);
      else expected[static_cast<std::size_t>(context.world_rank())].push_back(ids);
      if (step == 3) {
        mutex.unlock();
        accelerator.save_state(checkpoint);
        mutex.lock();
      }
    }
  });
  for (const bool opened_before : {true, false}) {
    run(2, [&](DataContext& context) {
      EXPECT_EQ(rest_of(context, checkpoint, opened_before, options), expected[static_cast<std::size_t>(context.world_rank())]);
    });
    for (const int ranks : {1, 3}) {
      auto all = seen;
      run(ranks, [&](DataContext& context) {
        const auto rest = rest_of(context, checkpoint, opened_before, options);
        const std::lock_guard lock{mutex};
        for (const auto& ids : rest) test::append(all, ids);
      });
      std::sort(all.begin(), all.end());
      EXPECT_EQ(all, test::counting(0, 44)) << ranks;
    }
  }
}

TEST(AcceleratorStream, RefusesACheckpointWithoutItsPosition) {
  const test::TempDirectory directory;
  run(1, [&](DataContext& context) { Accelerator{context}.save_state(directory.path / "none"); });
  run(1, [&](DataContext& context) {
    Accelerator accelerator{context};
    (void)context.dataset("train");
    try {
      accelerator.load_state(directory.path / "none");
      ADD_FAILURE() << "it was loaded";
    } catch (const Failure& failure) {
      EXPECT_THAT(failure.what(), testing::HasSubstr("the position of data set train"));
    }
    EXPECT_THAT(accelerator.load_state(directory.path / "none", {.strict = false}).missing, testing::SizeIs(1));
  });
}

TEST(AcceleratorStream, NamesDataSetsThatMainDoesNotList) {
  run(1, [](DataContext& context) {
    try {
      (void)context.dataset("trains");
      ADD_FAILURE() << "it was opened";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::NotFound);
      EXPECT_THAT(failure.what(), testing::HasSubstr("did you mean 'train'?"));
    }
  });
}

TEST(AcceleratorStream, TellsTheSplitWhichNodeHasWhat) {
  DataConfig data;
  data.options.fragment_nodes = {0, 0};
  run(2, [](DataContext& context) {
    EXPECT_THAT(context.dataset("train").split().rank_nodes, testing::ElementsAre(0, 0));
    EXPECT_THAT(context.dataset("train").split().fragment_nodes, testing::ElementsAre(0, 0));
  }, data);
}

}  // namespace
}  // namespace troupe

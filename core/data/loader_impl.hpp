#pragma once

#include <memory>
#include <optional>
#include <troupe/data/data_loader.hpp>
#include <troupe/data/samplers.hpp>
#include <troupe/data/sharding.hpp>

#include "epoch_plan.hpp"
#include "loader_epoch.hpp"
#include "worker_pool.hpp"

namespace troupe {

struct DataLoader::Impl {
  Impl(std::shared_ptr<const MapDataset> m, std::shared_ptr<const IterableDataset> s, DataLoaderOptions o);

  std::shared_ptr<const MapDataset> map;            // one of the two
  std::shared_ptr<const IterableDataset> iterable;  // the whole
  std::shared_ptr<const IterableDataset> own_stream;  // this rank's part, where the data set divides itself
  DataLoaderOptions options;
  BatchSharding sharding;   // of the ranks; its num_samples are those of an epoch where they are known
  bool dispatch = false;
  BroadcastBytes broadcast;
  std::unique_ptr<Sampler> made_sampler;  // of shuffle, or in order; null: to be made with the first epoch
  std::optional<std::uint64_t> seed;      // of a RandomSampler that was made
  bool seedable = false;                  // the sampler is Accelerate's
  std::shared_ptr<WorkerPool> pool;       // of worker processes, while they live
  std::shared_ptr<LoaderShared> shared = std::make_shared<LoaderShared>();

  struct Made {
    std::unique_ptr<BatchPipe> pipe;
    Iterator::Epoch::Facts facts;
  };
  [[nodiscard]] Made epoch(const LoaderPosition& start);
  void shard(int rank, int world_size, const DataLoaderConfiguration& configuration, std::uint64_t shared_seed, BroadcastBytes given);
  void check(const LoaderPosition& position) const;
  [[nodiscard]] std::int64_t size();
  [[nodiscard]] std::optional<std::int64_t> num_samples();
  [[nodiscard]] std::int64_t samples_after(const LoaderPosition& start, std::int64_t num_batches);
  /// Batches of any length, of a batch sampler.
  [[nodiscard]] bool has_lists() const { return options.batch_sampler && !options.batch_sampler->batch_size(); }
  [[nodiscard]] int reading_ranks() const { return dispatch ? 1 : sharding.world_size; }
  void use_seed(std::uint64_t value);

 private:
  [[nodiscard]] std::shared_ptr<const EpochPlan> plan(const LoaderPosition& start);
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch);
  /// How this process reads: rank 0 everything, when batches are dispatched.
  [[nodiscard]] BatchSharding reading(std::int64_t first) const;
  [[nodiscard]] std::unique_ptr<BatchPipe> reader(const LoaderPosition& start, const std::shared_ptr<const EpochPlan>& plan);
};

/// Throws Failure{InvalidArgument} naming the option.
void check_options(const DataLoaderOptions& options, bool has_map);

}  // namespace troupe

#pragma once

#include <troupe/data/tensor_dict.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace troupe {

/// A data set of known size that any thread may read by index.
class MapDataset {
 public:
  virtual ~MapDataset() = default;
  [[nodiscard]] virtual std::size_t size() const = 0;
  /// One sample, tensors without a batch dimension. Called from several threads at once.
  [[nodiscard]] virtual TensorDict get(std::size_t index) const = 0;
};

/// Makes a batch of samples. The default stacks tensors of equal shape along a new dim 0.
using Collate = std::function<Batch(std::vector<TensorDict>)>;
[[nodiscard]] Batch default_collate(std::vector<TensorDict> samples);

/// Names and defaults as in torch.utils.data.DataLoader.
struct DataLoaderOptions {
  std::int64_t batch_size = 1;          ///< of one rank (or of all together, with split_batches)
  bool shuffle = false;
  std::optional<std::uint64_t> seed = std::nullopt;  ///< of the shuffle; nothing: drawn from the rank group's generator
  int num_workers = 0;                  ///< threads that load and collate; 0: the caller's
  int prefetch_factor = 2;              ///< batches each worker may be ahead
  bool drop_last = false;
  Collate collate = {};                 ///< empty: default_collate
};

/// How a loader is divided over ranks; names and defaults as in Accelerate's DataLoaderConfiguration.
struct DataLoaderConfiguration {
  bool split_batches = false;
  bool even_batches = true;
  bool use_seedable_sampler = false;
  std::uint64_t data_seed = 42;
};

/// What a rank must know of the end of its loader to accumulate and to trim metrics, as in Accelerate.
struct LoaderState {
  bool end_of_dataloader = false;  ///< true while the last batch is being processed
  std::int64_t remainder = -1;     ///< real rows in the last global batch; 0: it is full; -1: unknown
};

/// Batches of a data set. Before `Accelerator::prepare` it yields the whole data set, afterwards one rank's share,
/// index for index as Accelerate 1.15 deals them. Each `begin()` starts an epoch.
///
/// Threads: one caller. Errors: an exception of the data set or of collate reaches the caller with the sample's index.
class DataLoader {
 public:
  DataLoader(std::shared_ptr<const MapDataset> dataset, DataLoaderOptions options);
  ~DataLoader();
  DataLoader(DataLoader&&) noexcept;
  DataLoader& operator=(DataLoader&&) noexcept;

  class Iterator {
   public:
    const Batch& operator*() const { return *batch_; }
    const Batch* operator->() const { return &*batch_; }
    Iterator& operator++();
    bool operator==(const Iterator& other) const { return loader_ == other.loader_; }

   private:
    friend class DataLoader;
    DataLoader* loader_ = nullptr;  // null at the end
    std::optional<Batch> batch_;
  };
  [[nodiscard]] Iterator begin();
  [[nodiscard]] Iterator end() { return {}; }

  /// Batches of one epoch on this rank.
  [[nodiscard]] std::int64_t size() const;
  /// Samples in the data set.
  [[nodiscard]] std::size_t dataset_size() const;
  [[nodiscard]] std::int64_t total_batch_size() const;
  [[nodiscard]] const LoaderState& state() const noexcept;
  [[nodiscard]] const DataLoaderOptions& options() const noexcept;

  /// Takes this rank's share from the next epoch on. Called by Accelerator::prepare.
  /// @param shared_seed used when shuffling without a seed of its own: the same number on every rank.
  void shard(int rank, int world_size, const DataLoaderConfiguration& configuration, std::uint64_t shared_seed);
  /// The epoch that the next `begin()` starts; part of the shuffle's seed. Advances by itself.
  void set_epoch(std::int64_t epoch);
  [[nodiscard]] std::int64_t epoch() const noexcept;
  /// The next epoch begins after its first `num_batches` batches (resume within an epoch).
  void skip_first_batches(std::int64_t num_batches);

 private:
  friend class Iterator;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe

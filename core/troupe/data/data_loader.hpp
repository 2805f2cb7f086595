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

/// Makes a batch of samples. The default stacks tensors of equal shape along a new dim 0. Called from several threads at
/// once when the loader has workers.
using Collate = std::function<Batch(std::vector<TensorDict>)>;
[[nodiscard]] Batch default_collate(std::vector<TensorDict> samples);

/// Names and defaults as in torch.utils.data.DataLoader.
struct DataLoaderOptions {
  std::int64_t batch_size = 1;        ///< of one rank (or of all together, with split_batches)
  bool shuffle = false;
  std::optional<std::uint64_t> seed = {};  ///< of the shuffle; nothing: the ranks' shared seed, or torch's default generator
  int num_workers = 0;                ///< threads that load and collate, at most 1024; 0: the caller's
  int prefetch_factor = 2;            ///< batches that each worker may be ahead, at least 1
  bool drop_last = false;
  Collate collate = {};               ///< empty: default_collate
};

/// How a loader is divided over ranks; names and defaults as in Accelerate's DataLoaderConfiguration.
struct DataLoaderConfiguration {
  bool split_batches = false;
  bool even_batches = true;
  bool use_seedable_sampler = false;  ///< shuffle epoch e by data_seed + e; the loader's own seed is then not used
  std::uint64_t data_seed = 42;
};

/// What a rank must know of the end of its loader to accumulate and to trim metrics, as in Accelerate.
struct LoaderState {
  bool end_of_dataloader = false;  ///< true while the last batch is being processed
  std::int64_t remainder = -1;     ///< real rows in the last global batch; 0: it is full; -1: unknown
};

/// Where an epoch stands: the first `first_sample` samples of its order were dealt to other ranks or in other batches, and of
/// the rest `num_batches` batches have been handed out, this rank's counted.
struct LoaderPosition {
  std::int64_t epoch = 0;
  std::int64_t num_batches = 0;
  std::int64_t first_sample = 0;
  bool operator==(const LoaderPosition&) const = default;
};

/// Batches of a data set. Before `Accelerator::prepare` it yields the whole data set, afterwards one rank's share,
/// index for index as Accelerate 1.15 deals them. Each `begin()` starts an epoch; one that was left early does not count
/// and starts again, unless set_epoch() or resume() says otherwise. An empty data set has no batches; shuffling one is an error, as in torch.
///
/// Threads: one caller. Errors: what the data set or collate throws reaches the caller at that batch, as a Failure with
/// the sample's index; a bad option throws Failure{InvalidArgument} naming it.
class DataLoader {
 public:
  DataLoader(std::shared_ptr<const MapDataset> dataset, DataLoaderOptions options);
  ~DataLoader();
  DataLoader(DataLoader&&) noexcept;
  DataLoader& operator=(DataLoader&&) noexcept;

  /// Owns the epoch it goes through: destroying it stops the workers. Stays valid when the loader moves or goes.
  class Iterator {
   public:
    Iterator();
    ~Iterator();
    Iterator(Iterator&&) noexcept;
    Iterator& operator=(Iterator&&) noexcept;
    const Batch& operator*() const { return *batch_; }
    const Batch* operator->() const { return &*batch_; }
    Iterator& operator++();
    /// Equal when both are at the end, or both the same iterator.
    bool operator==(const Iterator& other) const { return epoch_ == other.epoch_; }

   private:
    friend class DataLoader;
    class Epoch;
    explicit Iterator(std::unique_ptr<Epoch> epoch);
    std::unique_ptr<Epoch> epoch_;  // null at the end
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

  /// Called whenever the loop asks for a batch, before anything of it is loaded; `more`: there is one, or else the epoch ends.
  /// What it throws reaches the loop. It replaces the one before; empty takes it away. Set by Accelerator::prepare.
  using Asked = std::function<void(bool more)>;
  void set_asked(Asked asked);
  /// Indices into the data set of the samples of the batch handed out last in the epoch under way; empty when there is none.
  [[nodiscard]] const std::vector<std::int64_t>& batch_indices() const noexcept;

  /// Takes this rank's share from the next epoch on. Called by Accelerator::prepare.
  /// @param shared_seed used when shuffling without a seed of its own: the same number on every rank.
  void shard(int rank, int world_size, const DataLoaderConfiguration& configuration, std::uint64_t shared_seed);
  /// The epoch that the next `begin()` starts; part of the shuffle's seed. Advances by itself.
  void set_epoch(std::int64_t epoch);
  /// The epoch that runs now or was left early; else the one that the next `begin()` starts.
  [[nodiscard]] std::int64_t epoch() const noexcept;
  /// The next epoch begins after its first `num_batches` batches; the epochs after it are whole.
  void skip_first_batches(std::int64_t num_batches);

  /// The first batch not handed out yet, also after a loop that was left early. `resume` of a loader of the same data
  /// set, options and share goes on from there with the same batches.
  [[nodiscard]] LoaderPosition position() const noexcept;
  void resume(const LoaderPosition& position);
  /// Samples of the epoch's order that all ranks together have been handed at `position()`, ranks being in step.
  [[nodiscard]] std::int64_t samples_consumed() const noexcept;
  /// Goes on after the first `samples_consumed` samples of `epoch`, of whatever ranks and batches those were: the rest is dealt
  /// anew to the ranks there are now, by the rules for the end of any epoch. Where ranks and batch size are the same, and
  /// `samples_consumed` came from them, that gives the same batches as `resume`.
  void resume_after(std::int64_t epoch, std::int64_t samples_consumed);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe

#pragma once

#include <troupe/data/data_workers.hpp>
#include <troupe/data/datasets.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

class Sampler;
class BatchSampler;

/// Names and defaults as in torch.utils.data.DataLoader.
struct DataLoaderOptions {
  /// Of one rank (or of all together, with split_batches). Nothing: the data set's items are batches already.
  std::optional<std::int64_t> batch_size = 1;
  bool shuffle = false;
  std::optional<std::uint64_t> seed = {};  ///< of the shuffle; nothing: the ranks' shared seed, or torch's default generator
  int num_workers = 0;                ///< threads or processes that load and collate, at most 1024; 0: the caller's thread
  int prefetch_factor = 2;            ///< batches that each worker may be ahead, at least 1
  bool drop_last = false;
  Collate collate = {};               ///< empty: default_collate
  std::shared_ptr<Sampler> sampler = {};             ///< the order instead of shuffle; the same on every rank
  std::shared_ptr<BatchSampler> batch_sampler = {};  ///< instead of batch_size (1), shuffle, sampler and drop_last
  bool in_order = true;               ///< false: batches come as workers finish them
  std::chrono::milliseconds timeout{0};  ///< longest wait for a worker's batch; 0: none
  /// Workers are processes, which load from data of their own; `collate` is then the factory's. The loader's data set gives the size only.
  std::optional<WorkerProcesses> worker_processes = {};
  /// Worker processes stay from one epoch to the next, where torch's default ends them: each makes its data set anew. Threads always end.
  bool persistent_workers = true;
};

/// How a loader is divided over ranks; names and defaults as in Accelerate's DataLoaderConfiguration.
struct DataLoaderConfiguration {
  bool split_batches = false;
  bool even_batches = true;  ///< of data sets with indices; what is read as a stream is always evened out
  bool use_seedable_sampler = false;  ///< shuffle epoch e by data_seed + e; the loader's own seed is then not used
  std::uint64_t data_seed = 42;
  /// Rank 0 reads all ranks' batches as one, and broadcasts. Nothing: for an iterable data set that does not shard itself.
  std::optional<bool> dispatch_batches = {};
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
  std::vector<std::int64_t> ahead = {};  ///< numbers of later batches that were handed out too, without in_order
  std::string stream = {};               ///< where the pass over an iterable data set stands, if it can say
  bool operator==(const LoaderPosition&) const = default;
};

/// What a loop got of the epoch that began last, and how long its thread stood still for it.
struct LoaderStats {
  std::int64_t num_batches = 0;
  std::int64_t num_samples = 0;             ///< this rank's, added ones counted
  std::chrono::nanoseconds first_wait{0};   ///< from begin() to the first batch
  std::chrono::nanoseconds wait{0};         ///< for all later batches
  std::chrono::nanoseconds elapsed{0};      ///< from the first batch to the latest one, or to the epoch's end
  /// Share of a step that is spent waiting for data.
  [[nodiscard]] double wait_share() const noexcept { return elapsed.count() > 0 ? static_cast<double>(wait.count()) / static_cast<double>(elapsed.count()) : 0; }
};

/// Batches of a data set. Before `Accelerator::prepare` it yields the whole data set, afterwards one rank's share,
/// index for index as Accelerate 1.15 deals them (docs/data_loading.md). Each `begin()` starts an epoch; one that was left early does not count
/// and starts again, unless set_epoch() or resume() says otherwise. An empty data set has no batches; shuffling one is an error, as in torch.
///
/// Threads: one caller. Errors: what the data set or collate throws reaches the caller at that batch, as a Failure with
/// the sample's index; a bad option throws Failure{InvalidArgument} naming it.
class DataLoader {
 public:
  DataLoader(std::shared_ptr<const MapDataset> dataset, DataLoaderOptions options);
  DataLoader(std::shared_ptr<const IterableDataset> dataset, DataLoaderOptions options);
  ~DataLoader();
  DataLoader(DataLoader&&) noexcept;
  DataLoader& operator=(DataLoader&&) noexcept;

  /// Owns the epoch it goes through: destroying it stops the workers. Stays valid when the loader moves or goes.
  class Iterator {
   public:
    using value_type = Batch;
    using difference_type = std::ptrdiff_t;
    Iterator();
    ~Iterator();
    Iterator(Iterator&&) noexcept;
    Iterator& operator=(Iterator&&) noexcept;
    const Batch& operator*() const { return *batch_; }
    const Batch* operator->() const { return &*batch_; }
    Iterator& operator++();
    void operator++(int) { ++*this; }
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

  /// Batches of one epoch on this rank. Throws Failure{Unsupported} where an iterable data set does not say its size.
  [[nodiscard]] std::int64_t size() const;
  /// Samples in the data set; throws like size().
  [[nodiscard]] std::size_t dataset_size() const;
  /// Samples in the order of one epoch, of all ranks together: the data set's unless a sampler says otherwise; nothing where it is unknown.
  [[nodiscard]] std::optional<std::int64_t> num_samples() const;
  [[nodiscard]] std::int64_t total_batch_size() const;
  [[nodiscard]] const LoaderState& state() const noexcept;
  [[nodiscard]] const DataLoaderOptions& options() const noexcept;
  [[nodiscard]] const LoaderStats& stats() const noexcept;

  /// Called whenever the loop asks for a batch, before it is handed out; `more`: there is one, or else the epoch ends.
  /// What it throws reaches the loop. It replaces the one before; empty takes it away. Set by Accelerator::prepare.
  using Asked = std::function<void(bool more)>;
  void set_asked(Asked asked);
  /// Brings batches to a device, one ahead of the loop. Called with a batch as soon as it is loaded; what it returns is called
  /// when the loop asks for that batch. Set by Accelerator::prepare where the device has memory of its own.
  using Transfer = std::function<std::function<Batch()>(Batch)>;
  void set_transfer(Transfer transfer);
  /// Indices into the data set (of an iterable one: numbers in its order) of the samples of the batch handed out last in the
  /// epoch under way; empty when there is none, and when an iterable data set's items are batches.
  [[nodiscard]] const std::vector<std::int64_t>& batch_indices() const noexcept;

  /// Takes this rank's share from the next epoch on. Called by Accelerator::prepare.
  /// @param shared_seed used when shuffling without a seed of its own: the same number on every rank.
  /// @param broadcast   gives every rank rank 0's bytes; needed for dispatch_batches. Collective: called once a batch, and once at the end.
  using BroadcastBytes = std::function<void(std::string& bytes)>;
  void shard(int rank, int world_size, const DataLoaderConfiguration& configuration, std::uint64_t shared_seed, BroadcastBytes broadcast = {});
  /// The epoch that the next `begin()` starts; part of the shuffle's seed. Advances by itself.
  void set_epoch(std::int64_t epoch);
  /// The epoch that runs now or was left early; else the one that the next `begin()` starts.
  [[nodiscard]] std::int64_t epoch() const noexcept;
  /// The next epoch begins after its first `num_batches` batches; the epochs after it are whole.
  void skip_first_batches(std::int64_t num_batches);

  /// The first batch not handed out yet, also after a loop that was left early. `resume` of a loader of the same data
  /// set, options and share goes on from there with the same batches.
  [[nodiscard]] LoaderPosition position() const;
  void resume(const LoaderPosition& position);
  /// Samples of the epoch's order that all ranks together have been handed at `position()`, ranks being in step.
  [[nodiscard]] std::int64_t samples_consumed() const;
  /// Goes on after the first `samples_consumed` samples of `epoch`, of whatever ranks and batches those were: the rest is dealt
  /// anew to the ranks there are now, by the rules for the end of any epoch. Where ranks and batch size are the same, and
  /// `samples_consumed` came from them, that gives the same batches as `resume`.
  void resume_after(std::int64_t epoch, std::int64_t samples_consumed);
  /// Whether position() is this rank's alone: without in_order, or of a data set that shards itself. Only the same ranks go on from it.
  [[nodiscard]] bool has_own_position() const noexcept;
  /// The position and the shuffle's seed as bytes, for `load_state_dict` of a loader of the same data set on any number of ranks with
  /// any batch size. Batches that workers hold and the loop has not seen are loaded again.
  /// Throws Failure{DataMalformed} on other bytes, {Unsupported} on a position of other ranks' own.
  [[nodiscard]] std::string state_dict() const;
  void load_state_dict(std::string_view state);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe

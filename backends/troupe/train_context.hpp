#pragma once

#include <troupe/checkpoint_ref.hpp>
#include <troupe/communicator.hpp>
#include <troupe/config.hpp>
#include <troupe/device.hpp>
#include <troupe/metrics.hpp>
#include <troupe/run_options.hpp>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <typeindex>
#include <typeinfo>

namespace troupe {

class DataIterator;  // troupe/data_iterator.hpp
class RankDatasets;

/// Optional news beside a report, for progress displays; never stored.
struct Progress {
  int epoch = 0;             ///< from 1
  int num_epochs = 0;        ///< 0: unknown
  std::int64_t step = 0;     ///< optimizer updates so far, over all epochs
  std::int64_t num_steps = 0;///< 0: unknown
  double loss = 0;
  double samples_per_s = 0;  ///< over all ranks
  double data_wait = -1;     ///< share of the time since the last one that rank 0 waited for data; filled in by the context; -1: unknown
};

/// What a train function knows of its run and how it speaks to it. One object per rank and attempt.
///
/// Threads: the rank's own thread. Errors: every waiting call throws Failure (DeadlinePassed, Aborted, Cancelled).
class TrainContext {
 public:
  virtual ~TrainContext() = default;

  [[nodiscard]] virtual int world_rank() const noexcept = 0;
  [[nodiscard]] virtual int world_size() const noexcept = 0;
  /// Of the attempt that `get_checkpoint()` comes from; another than `world_size()` once an elastic run was resized.
  [[nodiscard]] virtual int previous_world_size() const noexcept { return world_size(); }
  [[nodiscard]] virtual int local_rank() const noexcept = 0;
  [[nodiscard]] virtual int local_world_size() const noexcept = 0;
  [[nodiscard]] virtual int node_rank() const noexcept = 0;
  [[nodiscard]] virtual std::uint64_t attempt() const noexcept = 0;
  [[nodiscard]] virtual Device device() const noexcept = 0;
  [[nodiscard]] virtual const ScalingConfig& scaling() const noexcept = 0;
  [[nodiscard]] virtual std::string run_name() const = 0;

  /// Sends metrics, and a checkpoint when there is one, to the Trainer and returns at once: no barrier, no copy, no
  /// disk. Ranks may report metrics different numbers of times, or not at all; those that write one checkpoint together have reported
  /// equally often before it. A checkpoint that can therefore not become whole ends the run as InvalidArgument that names ranks and report, one
  /// whose parts are apart by more than RunConfig::collective_timeout as DeadlinePassed.
  ///
  /// @param checkpoint a directory this rank has finished writing, or is writing in the background
  ///        (`Checkpoint::pending`), best one from `checkpoint_dir()` or `shared_checkpoint_dir()` (moved, not copied). It is committed when as many ranks as it has writers have sent theirs for the same report index;
  ///        their files end up in one directory, and a file name used twice is an error.
  virtual void report(const Metrics& metrics, const std::optional<Checkpoint>& checkpoint = std::nullopt) = 0;
  /// Shows where training stands; rate-limited, may be dropped, costs well under a microsecond when it is.
  virtual void progress(const Progress& progress) = 0;
  /// A new empty directory in the run's storage for this rank's next checkpoint.
  [[nodiscard]] virtual std::filesystem::path checkpoint_dir() = 0;
  /// A directory in the run's storage into which all ranks of the attempt write parts of one checkpoint: the n-th call of
  /// every rank gives the same one. Made if it is not there; waits for nobody.
  [[nodiscard]] virtual std::filesystem::path shared_checkpoint_dir() = 0;
  /// The newest committed checkpoint when this attempt began; nothing on a fresh run.
  [[nodiscard]] virtual std::optional<Checkpoint> get_checkpoint() const = 0;

  /// Says that this rank has finished a training step: the proof that its training thread gets on, and where injected faults
  /// strike. The Accelerator calls it when the loop asks a prepared loader for the next batch; a loop without one calls it itself
  /// once a step. Costs under 100 ns. Throws what an injected fault throws.
  virtual void step_completed() {}
  /// True once when a `nan` fault is injected: whoever makes gradients then puts a NaN into them.
  [[nodiscard]] virtual bool wants_bad_number() noexcept { return false; }
  /// Where copies of the training state are kept that outlive this rank; none unless the run restarts lost ranks.
  [[nodiscard]] virtual SnapshotOptions snapshots() const { return {}; }
  /// Reports sent so far over all attempts, as the next report's index.
  [[nodiscard]] virtual std::uint64_t reports() const noexcept { return 0; }

  /// What `make` gives, or gave in an earlier attempt that ran in this process: data that was read, tokens, pretrained weights.
  /// After a failure only ranks that were lost make it anew. Not for what was prepared: an Accelerator may have sharded it.
  template <class T>
  [[nodiscard]] std::shared_ptr<T> keep(const std::string& name, const std::function<std::shared_ptr<T>()>& make) {
    return std::static_pointer_cast<T>(keep_object(name, typeid(T), [&make]() -> std::shared_ptr<void> { return make(); }));
  }

  /// This rank's share of the data set that `main` lists under `name`, divided as TrainerOptions::dataset_config says; the same object each
  /// time. Ray Train's get_dataset_shard. A program that calls it includes troupe/data_iterator.hpp and links troupe::datasets.
  /// Throws Failure{NotFound}, and what making the data set throws.
  [[nodiscard]] DataIterator dataset(const std::string& name);
  /// What main lists, and which of it was opened; nullptr: this context has no data sets.
  [[nodiscard]] virtual RankDatasets* datasets() noexcept { return nullptr; }
  /// The training thread has waited so long for a batch: said by loaders, shown in progress.
  virtual void waited_for_data(std::chrono::nanoseconds) noexcept {}

  /// Waits for every rank of the attempt. Goes over the actors, not over the communicator; a failure names who did
  /// not come.
  virtual void barrier() = 0;
  /// Rank 0's bytes on every rank (1 MiB at most).
  [[nodiscard]] virtual std::string broadcast_from_rank_zero(std::string bytes) = 0;
  /// True once the run was asked to stop: finish the step, report what you must, and return.
  [[nodiscard]] virtual bool should_stop() const noexcept = 0;

  /// This rank's seat among all ranks, for what lies in host memory.
  [[nodiscard]] virtual Communicator& communicator() = 0;
  /// Streams and memory of `device()`.
  [[nodiscard]] virtual DeviceRuntime& device_runtime() { return cpu_runtime(); }
  /// The seat for tensors on `device()`: on the CPU the same.
  [[nodiscard]] virtual Communicator& device_communicator() { return communicator(); }

 protected:
  [[nodiscard]] virtual std::shared_ptr<void> keep_object(const std::string&, std::type_index, const std::function<std::shared_ptr<void>()>& make) {
    return make();
  }
};

/// A train function, as `main` lists it by name.
using TrainFunction = std::function<void(TrainContext&, const Config&)>;

}  // namespace troupe

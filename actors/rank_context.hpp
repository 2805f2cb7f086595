#pragma once

#include "rank_chaos.hpp"
#include "rank_channel.hpp"

#include <troupe/kept_objects.hpp>
#include <troupe/rank_datasets.hpp>
#include <troupe/rank_gpu.hpp>
#include <troupe/train_context.hpp>

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

namespace troupe {

/// The TrainContext of a rank whose news goes to actors.
class RankContext final : public TrainContext {
 public:
  /// With use_gpu it opens the rank's GPU, which all ranks do at the same time; throws what `load_gpus` and `open_rank_gpu` throw.
  RankContext(RunRank run, std::shared_ptr<RankChannel> channel, std::shared_ptr<Communicator> seat, std::shared_ptr<KeptObjects> kept, RankDatasets datasets);

  int world_rank() const noexcept override { return run_.rank; }
  int world_size() const noexcept override { return run_.world_size; }
  int previous_world_size() const noexcept override { return run_.previous_world_size > 0 ? run_.previous_world_size : run_.world_size; }
  int local_rank() const noexcept override { return run_.local_rank; }
  int local_world_size() const noexcept override { return run_.local_world_size; }
  int node_rank() const noexcept override { return run_.node_rank; }
  std::uint64_t attempt() const noexcept override { return run_.attempt; }
  Device device() const noexcept override;
  const ScalingConfig& scaling() const noexcept override { return run_.scaling; }
  std::string run_name() const override { return run_.run_name; }
  void report(const Metrics& metrics, const std::optional<Checkpoint>& checkpoint) override;
  void progress(const Progress& progress) override;
  std::filesystem::path checkpoint_dir() override;
  std::filesystem::path shared_checkpoint_dir() override;
  std::optional<Checkpoint> get_checkpoint() const override;
  void step_completed() override {
    ++steps_;
    if (auto* box = channel_->box()) {
      box->steps.store(steps_, std::memory_order_relaxed);
      box->advance();
      box->note(EventKind::Step, steps_, {}, {}, std::chrono::steady_clock::now());
    }
    if (chaos_) chaos_->strike(steps_, *seat_);
  }
  bool wants_bad_number() noexcept override { return chaos_ && chaos_->take_bad_number(); }
  SnapshotOptions snapshots() const override { return run_.snapshots; }
  std::uint64_t reports() const noexcept override { return next_report_; }
  RankDatasets* datasets() noexcept override { return &datasets_; }
  void waited_for_data(std::chrono::nanoseconds time) noexcept override { waited_ += time; }
  void barrier() override { (void)wait_for_all({}); }
  std::string broadcast_from_rank_zero(std::string bytes) override;
  bool should_stop() const noexcept override { return channel_->next_stop_call(); }
  Communicator& communicator() override { return *seat_; }
  DeviceRuntime& device_runtime() override { return gpu_.runtime ? *gpu_.runtime : cpu_runtime(); }
  Communicator& device_communicator() override { return gpu_.communicator ? *gpu_.communicator : *seat_; }

  /// Waits until everything reported is durable, or has failed. Throws Failure{DeadlinePassed}.
  void finish_saves();

 private:
  std::shared_ptr<void> keep_object(const std::string& name, std::type_index type, const KeptObjects::Make& make) override {
    return kept_->get(run_.rank, name, type, make);
  }
  std::string wait_for_all(std::string bytes);

  RunRank run_;
  std::shared_ptr<RankChannel> channel_;
  std::shared_ptr<Communicator> seat_;
  std::shared_ptr<KeptObjects> kept_;
  RankDatasets datasets_;
  std::shared_ptr<NcclPlugin> plugin_;
  RankGpu gpu_;  // empty without use_gpu
  std::uint64_t next_report_;
  std::uint64_t steps_ = 0;
  std::optional<RankChaos> chaos_;  // only when faults are injected
  std::uint64_t next_barrier_ = 0;
  std::vector<std::pair<std::uint64_t, std::shared_ptr<PendingSave>>> saves_;  // by report, those that may be under way
  int next_directory_ = 0;
  int next_shared_directory_ = 0;
  std::chrono::steady_clock::time_point next_progress_, last_progress_ = std::chrono::steady_clock::now();
  std::chrono::nanoseconds waited_{0};  // for data, since the last progress
};

}  // namespace troupe

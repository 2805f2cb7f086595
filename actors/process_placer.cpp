#include "process_placer.hpp"

#include "local_processes.hpp"
#include "rank_proxy.hpp"

#include <troupe/rank_gpu.hpp>

namespace troupe {

namespace {

class ProcessPlacer final : public RankPlacer {
 public:
  ProcessPlacer(std::shared_ptr<detail::RankProcesses> processes, const StartGroup& group)
      : attempt_(group.attempt), stop_grace_(group.run.stop_grace), spare_workers_(group.scaling.spare_workers), processes_(std::move(processes)) {
    // Ranks on nodes find their node's GPUs.
    if (group.scaling.use_gpu && group.scaling.placement == Placement::Processes) gpus_ = group.scaling.num_workers;
    if (gpus_ > 0) (void)load_gpus(gpus_);
    processes_->begin_attempt(group);
  }
  ~ProcessPlacer() override { processes_->end_attempt(attempt_); }

  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    return detail::spawn_rank_proxy(group->system(), processes_, caf::actor_cast<caf::actor>(group), spec, stop_grace_);
  }

  bool is_preparing() const override { return processes_->is_preparing(); }
  void all_started() override { processes_->keep_spares(spare_workers_); }
  void find_places(int count, Found done) override {
    try {
      if (gpus_ > 0) (void)load_gpus(gpus_ + count);
      processes_->find_places(count, std::move(done));
    } catch (const Failure& failure) {
      done(0, failure.what());
    }
  }
  void abort(const std::string& reason) noexcept override { processes_->abort(attempt_, reason); }

 private:
  const Attempt attempt_;
  const std::chrono::milliseconds stop_grace_;
  const int spare_workers_;
  int gpus_ = 0;
  std::shared_ptr<detail::RankProcesses> processes_;
};

}  // namespace

std::unique_ptr<RankPlacer> make_placer_in(std::shared_ptr<detail::RankProcesses> processes, const StartGroup& group) {
  return std::make_unique<ProcessPlacer>(std::move(processes), group);
}

std::unique_ptr<RankPlacer> make_process_placer(const Session& session, const StartGroup& group) {
  return make_placer_in(std::make_shared<detail::LocalProcesses>(session, group.scaling, group.run), group);
}

}  // namespace troupe

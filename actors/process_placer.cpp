#include "process_placer.hpp"

#include "rank_proxy.hpp"

#include <troupe/rank_gpu.hpp>

namespace troupe {

namespace {

class ProcessPlacer final : public RankPlacer {
 public:
  ProcessPlacer(std::shared_ptr<detail::ProcessPool> pool, const StartGroup& group)
      : stop_grace_(group.run.stop_grace), gpus_(group.scaling.use_gpu ? group.scaling.num_workers : 0), spare_workers_(group.scaling.spare_workers), pool_(std::move(pool)) {
    if (group.scaling.use_gpu) (void)load_gpus(group.scaling.num_workers);
    pool_->begin_attempt(group.scaling.num_workers);
    memory_ = SharedGroup::create(group.scaling.num_workers, group.run.collective_timeout);
  }

  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    return detail::spawn_rank_proxy(group->system(), pool_, memory_, caf::actor_cast<caf::actor>(group), spec, stop_grace_);
  }

  void all_started() override { pool_->keep_spares(spare_workers_); }
  void find_places(int count, Found done) override {
    try {
      if (gpus_ > 0) (void)load_gpus(gpus_ + count);
      pool_->find_places(count, std::move(done));
    } catch (const Failure& failure) {
      done(0, failure.what());
    }
  }
  void abort(const std::string& reason) noexcept override { memory_->abort(reason); }

 private:
  const std::chrono::milliseconds stop_grace_;
  const int gpus_, spare_workers_;
  std::shared_ptr<detail::ProcessPool> pool_;
  std::shared_ptr<SharedGroup> memory_;
};

}  // namespace

std::unique_ptr<RankPlacer> make_pooled_placer(std::shared_ptr<detail::ProcessPool> pool, const StartGroup& group) {
  return std::make_unique<ProcessPlacer>(std::move(pool), group);
}

std::unique_ptr<RankPlacer> make_process_placer(const Session& session, const StartGroup& group) {
  return make_pooled_placer(std::make_shared<detail::ProcessPool>(session, group.scaling, group.run), group);
}

}  // namespace troupe

#include "process_host.hpp"
#include "rank_proxy.hpp"

#include <troupe/rank.hpp>
#include <troupe/rank_gpu.hpp>

namespace troupe {

namespace {

class ProcessPlacer final : public RankPlacer {
 public:
  ProcessPlacer(const Session& session, const StartGroup& group) : stop_grace_(group.run.stop_grace) {
    if (group.scaling.use_gpu) (void)load_gpus(group.scaling.num_workers);
    host_ = std::make_shared<detail::ProcessHost>(session, group);
  }

  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    return detail::spawn_rank_proxy(group->system(), host_, caf::actor_cast<caf::actor>(group), spec, stop_grace_);
  }

  void abort(const std::string& reason) noexcept override { host_->abort(reason); }

 private:
  const std::chrono::milliseconds stop_grace_;
  std::shared_ptr<detail::ProcessHost> host_;
};

}  // namespace

std::unique_ptr<RankPlacer> make_process_placer(const Session& session, const StartGroup& group) {
  return std::make_unique<ProcessPlacer>(session, group);
}

}  // namespace troupe

#include <troupe/local_groups.hpp>
#include <troupe/rank.hpp>
#include <troupe/rank_gpu.hpp>
#include <troupe/start_limits.hpp>

#include <latch>
#include <thread>
#include <vector>

namespace troupe {

namespace {

class ThreadPlacer final : public RankPlacer {
 public:
  ThreadPlacer(const Session& session, const StartGroup& group, std::shared_ptr<KeptObjects> kept)
      : functions_(session.functions()), datasets_(session.datasets()), kept_(std::move(kept)), gpus_(group.scaling.use_gpu ? group.scaling.num_workers : 0) {
    if (group.scaling.use_gpu) (void)load_gpus(group.scaling.num_workers);
    for (auto& seat : make_thread_group(group.scaling.num_workers, group.run.collective_timeout)) {
      seats_.push_back(std::move(seat));
      watched_.push_back(seats_.back());
    }
  }

  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    auto seat = std::move(seats_.at(static_cast<std::size_t>(spec.rank)));
    return spawn_thread_rank(group->system(), functions_, std::move(seat), caf::actor_cast<caf::actor>(group), kept_, datasets_);
  }

  // A thread is there at once, or it cannot be.
  void find_places(int count, Found done) override {
    std::vector<std::thread> threads;
    std::string why;
    try {
      if (gpus_ > 0) (void)load_gpus(gpus_ + count);
      std::latch all_tried{1};  // all at the same time, as ranks are
      const auto release = [&] {
        all_tried.count_down();
        for (auto& thread : threads) thread.join();
      };
      try {
        while (static_cast<int>(threads.size()) < count) threads.push_back(start_thread("one more rank", [&all_tried] { all_tried.wait(); }));
      } catch (const Failure& failure) {
        why = failure.what();
      }
      release();
    } catch (const Failure& failure) {
      why = failure.what();
    }
    done(static_cast<int>(threads.size()), why);
  }

  void abort(const std::string& reason) noexcept override {
    // Any seat aborts the whole group; one that is given up cannot.
    for (const auto& watched : watched_) {
      if (const auto seat = watched.lock()) return seat->abort(reason);
    }
  }

 private:
  const TrainFunctions& functions_;
  const DatasetFunctions& datasets_;
  std::shared_ptr<KeptObjects> kept_;
  const int gpus_;
  std::vector<std::shared_ptr<Communicator>> seats_;  // until a rank takes it
  std::vector<std::weak_ptr<Communicator>> watched_;
};

}  // namespace

std::unique_ptr<RankPlacer> make_thread_placer(const Session& session, const StartGroup& group, std::shared_ptr<KeptObjects> kept) {
  return std::make_unique<ThreadPlacer>(session, group, std::move(kept));
}

}  // namespace troupe

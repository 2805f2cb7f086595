#include "control_gather.hpp"

#include <caf/all.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <troupe/errors.hpp>
#include <troupe/trainer.hpp>
#include <troupe/worker_group.hpp>

#include "control_figures.hpp"

namespace troupe::bench {
namespace {

/// The bench to a rank actor: report now.
struct Report {};
/// The bench to a rank actor: say that the train function has returned.
struct Finish {};

/// What the actors tell the thread that measures.
class Board {
 public:
  void tell(int Board::*counter) {
    const std::lock_guard lock{mutex_};
    ++(this->*counter);
    last_ = now_s();
    changed_.notify_one();
  }
  /// Waits until a counter is `count` and returns when it last changed.
  double wait(int Board::*counter, int count) {
    std::unique_lock lock{mutex_};
    if (!changed_.wait_for(lock, std::chrono::seconds(20),
                           [&] { return this->*counter >= count; })) {
      throw Failure{Errc::DeadlinePassed, "gather: only " + std::to_string(this->*counter) +
                                              " of " + std::to_string(count) +
                                              " messages came within 20 s"};
    }
    return last_;
  }
  int started = 0;
  int reports = 0;
  int ended = 0;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  double last_ = 0;
};

}  // namespace
}  // namespace troupe::bench

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::bench::Report)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::bench::Finish)

namespace troupe::bench {
namespace {

caf::behavior rank_behavior(caf::event_based_actor* self, const caf::actor& group, int rank) {
  return {
      [=](const RunRank& order) {
        self->send(group, RankStarted{order.attempt, rank, 0});
      },
      [=](Report) {
        self->send(group, Reported{1, rank, 0, {{"epoch", 1}, {"loss", 0.5}}, std::nullopt, 1});
      },
      [=](Finish) {
        self->send(group, RankDone{1, rank, 0, {}});
        self->quit();
      },
      [=](const AbortRank&) { self->quit(); },
  };
}

class BarePlacer final : public RankPlacer {
 public:
  explicit BarePlacer(std::vector<caf::actor>& ranks) : ranks_(ranks) {}
  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    ranks_.push_back(
        group->spawn<caf::linked>(rank_behavior, caf::actor_cast<caf::actor>(group), spec.rank));
    return ranks_.back();
  }
  void abort(const std::string&) noexcept override {}

 private:
  std::vector<caf::actor>& ranks_;
};

/// Stands where the Trainer stands.
caf::behavior trainer_behavior(caf::event_based_actor* self, Board* board) {
  self->set_exit_handler([](const caf::exit_msg&) {});
  return {
      [=](const GroupStarted&) { board->tell(&Board::started); },
      [=](const Reported&) { board->tell(&Board::reports); },
      [=](const GroupEnded&) {
        board->tell(&Board::ended);
        self->quit();
      },
  };
}

struct SystemConfig : caf::actor_system_config {
  SystemConfig() {  // as TorchTrainer sets it
    set("scheduler.policy", caf::atom("sharing"));
    set("scheduler.max-threads", std::size_t{2});
    register_types(*this);
  }
};

}  // namespace

std::vector<double> gather_reports(int num_ranks, int rounds) {
  Board board;
  std::vector<caf::actor> ranks;
  SystemConfig config;
  caf::actor_system system{config};
  const auto trainer = system.spawn(trainer_behavior, &board);
  const auto group = spawn_worker_group(
      system, trainer, [&](const StartGroup&) { return std::make_unique<BarePlacer>(ranks); });
  StartGroup start;
  start.attempt = 1;
  start.function = "none";
  start.config_json = "{}";
  start.scaling.num_workers = num_ranks;
  caf::anon_send(group, start);
  board.wait(&Board::started, 1);
  std::vector<double> seconds;
  for (int round = 1; round <= rounds; ++round) {
    const double begin = now_s();
    for (const auto& rank : ranks) caf::anon_send(rank, Report{});
    seconds.push_back(board.wait(&Board::reports, round * num_ranks) - begin);
  }
  for (const auto& rank : ranks) caf::anon_send(rank, Finish{});
  board.wait(&Board::ended, 1);
  return seconds;
}

}  // namespace troupe::bench

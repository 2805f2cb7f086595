// What a lost rank costs when there are many: a real Trainer, WorkerGroup and CheckpointKeeper over 10,000 rank actors
// that have no thread of their own.
//
//   scale_bench [--json FILE] [--ranks N]     a table on stderr and FILE
#include <unistd.h>

#include <caf/all.hpp>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <mutex>

#include "../actors/trainer_state.hpp"
#include "control_figures.hpp"

namespace troupe::bench {
namespace {

/// The bench to a rank actor: its process was killed.
struct Die {};
/// The bench to a rank actor: its train function has returned.
struct Return {};

}  // namespace
}  // namespace troupe::bench

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::bench::Die)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::bench::Return)

namespace troupe::bench {
namespace {

/// When what happened, told by all threads.
class Times {
 public:
  struct Moment {
    int count = 0;
    double first = 0, last = 0;
  };
  void tell(const std::string& what) {
    const double now = now_s();
    const std::lock_guard lock{mutex_};
    auto& moment = moments_[what];
    if (moment.count++ == 0) moment.first = now;
    moment.last = now;
    changed_.notify_one();
  }
  Moment wait(const std::string& what, int count) {
    std::unique_lock lock{mutex_};
    if (!changed_.wait_for(lock, std::chrono::seconds(60), [&] { return moments_[what].count >= count; })) {
      throw Failure{Errc::DeadlinePassed, what + ": " + std::to_string(moments_[what].count) + " of " + std::to_string(count) + " within 60 s"};
    }
    return moments_[what];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Moment> moments_;
};

std::string in_attempt(const char* what, Attempt attempt) { return what + std::to_string(attempt); }

caf::behavior rank_behavior(caf::event_based_actor* self, Times* times, const caf::actor& group, int rank) {
  self->link_to(group);
  self->set_exit_handler([self](const caf::exit_msg&) { self->quit(); });
  const auto lose = [=](Attempt attempt, Errc code, const std::string& text) {
    RunError error;
    error.code = code;
    error.message = text;
    error.rank = rank;
    self->send(group, RankLost{attempt, rank, std::move(error)});
    self->quit();
  };
  return {
      [=](const RunRank& order) {
        times->tell(in_attempt("order", order.attempt));
        self->send(group, RankStarted{order.attempt, rank, 0});
        if (rank == 0) self->send(group, Reported{order.attempt, 0, order.first_report_index, {{"loss", 0.5}}, std::nullopt, 1});
      },
      [=](const AbortRank& order) {
        times->tell(in_attempt("abort", order.attempt));
        lose(order.attempt, Errc::Aborted, order.reason);
      },
      [=](Die) {
        times->tell("death");
        lose(1, Errc::RankKilled, "its process was killed by signal 9 (SIGKILL)");
      },
      [=](Return) {
        self->send(group, RankDone{2, rank, 0, {}});
        self->quit();
      },
  };
}

class ManyPlacer final : public RankPlacer {
 public:
  ManyPlacer(Times& times, std::vector<caf::actor>& ranks, Attempt attempt) : times_(times), ranks_(ranks), attempt_(attempt) {
    times_.tell(in_attempt("plan", attempt));
    ranks_.clear();
  }
  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    ranks_.push_back(group->system().spawn(rank_behavior, &times_, caf::actor_cast<caf::actor>(group), spec.rank));
    return ranks_.back();
  }
  void abort(const std::string&) noexcept override { times_.tell(in_attempt("decision", attempt_)); }

 private:
  Times& times_;
  std::vector<caf::actor>& ranks_;
  const Attempt attempt_;
};

struct SystemConfig : caf::actor_system_config {
  SystemConfig() {  // as TorchTrainer sets it
    set("scheduler.policy", caf::atom("sharing"));
    set("scheduler.max-threads", std::size_t{2});
    register_types(*this);
  }
};

struct Recovery {
  double noticed_s = 0;  ///< from the death until the group has decided to end the attempt
  double told_s = 0;     ///< until the last rank has the order to abort
  double ended_s = 0;    ///< until the next attempt begins: all ranks have ended, the journal and reports are written
  double plan_s = 0;     ///< from there until the last rank has its order
};

Recovery lose_one_of(int num_ranks, const std::filesystem::path& storage) {
  Times times;
  std::vector<caf::actor> ranks;
  SystemConfig config;
  caf::actor_system system{config};
  TrainerSetup setup;
  setup.function = "none";
  setup.config_json = R"({"hidden": 384, "lr": 2e-05})";
  setup.scaling.num_workers = num_ranks;
  setup.run.name = "run";
  setup.run.storage_path = storage.string();
  setup.run.failure.max_failures = 1;
  setup.run.failure.snapshot_every = 0;
  setup.make_placer = [&](const StartGroup& group) { return std::make_unique<ManyPlacer>(times, ranks, group.attempt); };
  setup.listeners = {system.spawn([&times](caf::event_based_actor* self) -> caf::behavior {
    return {[&times](const RunStarted& news) { times.tell(in_attempt("attempt", news.attempt)); },
            [&times](const ReportArrived& news) { times.tell(in_attempt("report", news.report.attempt)); },
            [](const RunWarning&) {},
            [&times, self](const RunEnded& news) {
              times.tell(news.result.ok() ? "fine" : "failed: " + news.result.error->message);
              self->quit();
            }};
  })};
  (void)system.spawn(trainer_behavior, std::move(setup));
  times.wait("order1", num_ranks);
  times.wait("report1", 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // all is quiet
  caf::anon_send(ranks.at(static_cast<std::size_t>(num_ranks / 2)), Die{});
  const auto death = times.wait("death", 1), decision = times.wait("decision1", 1), told = times.wait("abort1", num_ranks - 1);
  const auto plan = times.wait("plan2", 1), orders = times.wait("order2", num_ranks);
  for (const auto& rank : ranks) caf::anon_send(rank, Return{});
  ranks.clear();
  times.wait("fine", 1);
  return {decision.first - death.first, told.last - death.first, plan.first - death.first, orders.last - plan.first};
}

int run(const std::string& json_file, int num_ranks) {
  auto pattern = (std::filesystem::temp_directory_path() / "troupe-scale-bench-XXXXXX").string();
  if (!::mkdtemp(pattern.data())) throw Failure{Errc::StorageUnavailable, pattern + " cannot be made"};
  constexpr int rounds = 7;
  std::vector<double> noticed, told, ended, plan;
  for (int round = 0; round < rounds; ++round) {
    const auto recovery = lose_one_of(num_ranks, std::filesystem::path(pattern) / std::to_string(round));
    noticed.push_back(1e3 * recovery.noticed_s);
    told.push_back(1e3 * recovery.told_s);
    ended.push_back(1e3 * recovery.ended_s);
    plan.push_back(1e3 * recovery.plan_s);
  }
  std::filesystem::remove_all(pattern);
  auto figures = nlohmann::ordered_json::array();
  std::fprintf(stderr, "%d ranks\n%-28s %10s %10s %s\n", num_ranks, "figure", "ours", "limit", "unit");
  figures.push_back(figure("scale_noticed", median(noticed), {"ms", 50, "limit"}, rounds));
  figures.push_back(figure("scale_told", median(told), {"ms", 50, "limit"}, rounds));
  figures.push_back(figure("scale_plan", median(plan), {"ms", 200, "limit"}, rounds));
  figures.push_back(figure("scale_ended", median(ended), {"ms", 500, "limit"}, rounds));
  if (!json_file.empty() && !(std::ofstream{json_file} << figures.dump(1) << "\n").flush()) {
    throw Failure{Errc::StorageUnavailable, json_file + " cannot be written"};
  }
  return 0;
}

}  // namespace
}  // namespace troupe::bench

int main(int argc, char** argv) {
  std::string json_file;
  int num_ranks = 10'000;
  try {
    for (int i = 1; i < argc; i += 2) {
      const std::string word = argv[i];
      if (i + 1 == argc || (word != "--json" && word != "--ranks")) {
        std::cerr << "usage: scale_bench [--json FILE] [--ranks N]\n";
        return 2;
      }
      if (word == "--json") json_file = argv[i + 1];
      if (word == "--ranks") num_ranks = std::stoi(argv[i + 1]);
    }
    return troupe::bench::run(json_file, num_ranks);
  } catch (const std::exception& error) {
    std::cerr << "scale_bench: " << error.what() << "\n";
    return 1;
  }
}

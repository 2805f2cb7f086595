// What a lost rank costs when there are many: a real Trainer, WorkerGroup and CheckpointKeeper over 10,000 rank actors
// that have no thread of their own.
//
//   scale_bench [--json FILE] [--ranks N]     a table on stderr and FILE
#include <unistd.h>

#include <atomic>
#include <caf/all.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>

#include "../actors/beats.hpp"
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

/// Something that happens once or to every rank, told by any thread.
class Moment {
 public:
  void tell() {
    const double now = now_s();
    double expected = 0;
    first_.compare_exchange_strong(expected, now);
    last_ = now;
    ++count_;
  }
  /// Waits until it has happened `count` times.
  void wait(const char* what, int count) const {
    const double give_up = now_s() + 60;
    while (count_ < count) {
      if (now_s() > give_up) throw Failure{Errc::DeadlinePassed, std::string(what) + ": " + std::to_string(count_) + " of " + std::to_string(count) + " within 60 s"};
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
  [[nodiscard]] double first() const { return first_; }
  [[nodiscard]] double last() const { return last_; }

 private:
  std::atomic<int> count_{0};
  std::atomic<double> first_{0}, last_{0};
};

/// Of two attempts, where it is two.
struct Times {
  Moment plan[2], order[2], report[2], decision, abort, death, end;
};

caf::behavior rank_behavior(caf::event_based_actor* self, Times* times, const caf::actor& group, int rank) {
  self->monitor(group);
  self->set_down_handler([self](const caf::down_msg&) { self->quit(); });
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
        times->order[order.attempt - 1].tell();
        self->send(group, RankStarted{order.attempt, rank, 0});
        if (rank == 0) self->send(group, Reported{order.attempt, 0, order.first_report_index, {{"loss", 0.5}}, std::nullopt, 1});
      },
      [=](const AbortRank& order) {
        times->abort.tell();
        lose(order.attempt, Errc::Aborted, order.reason);
      },
      [](const AskBeat&) {},
      [=](Die) {
        times->death.tell();
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
  ManyPlacer(Times& times, std::vector<caf::actor>& ranks, Attempt attempt) : times_(times), ranks_(ranks) {
    times_.plan[attempt - 1].tell();
    ranks_.clear();
  }
  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    ranks_.push_back(group->system().spawn(rank_behavior, &times_, caf::actor_cast<caf::actor>(group), spec.rank));
    return ranks_.back();
  }
  void abort(const std::string&) noexcept override { times_.decision.tell(); }

 private:
  Times& times_;
  std::vector<caf::actor>& ranks_;
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
    return {[](const RunStarted&) {}, [](const RunWarning&) {},
            [&times](const ReportArrived& news) { times.report[news.report.attempt - 1].tell(); },
            [&times, self](const RunEnded&) {
              times.end.tell();
              self->quit();
            }};
  })};
  (void)system.spawn(trainer_behavior, std::move(setup));
  times.order[0].wait("orders", num_ranks);
  times.report[0].wait("the report", 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // all is quiet
  caf::anon_send(ranks.at(static_cast<std::size_t>(num_ranks / 2)), Die{});
  times.abort.wait("orders to abort", num_ranks - 1);
  times.order[1].wait("orders of the second attempt", num_ranks);
  times.report[1].wait("the report of the second attempt", 1);
  for (const auto& rank : ranks) caf::anon_send(rank, Return{});
  ranks.clear();
  times.end.wait("the end", 1);
  const double death = times.death.first(), plan = times.plan[1].first();
  return {times.decision.first() - death, times.abort.last() - death, plan - death, times.order[1].last() - plan};
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

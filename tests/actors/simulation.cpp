#include "simulation.hpp"

#include <troupe/trainer.hpp>

#include "../../actors/checkpoint_keeper.hpp"
#include "../../actors/trainer_state.hpp"
#include "simulation_bugs.hpp"
#include "simulation_checker.hpp"

namespace troupe::sim {

using namespace std::chrono_literals;

namespace {

constexpr Duration patience = 30min;          // then a run is stopped, whatever it does
constexpr Duration after_second_stop = 10s;   // and the time that its disk takes
constexpr std::uint64_t most_messages = 400'000;

/// One driver: a Trainer with all its actors, from its spawn to the last message.
class Driver {
 public:
  Driver(const Scenario& scenario, Disk& disk, Ledger& ledger, std::uint64_t seed, Bug bug, bool trace)
      : scenario_(scenario), disk_(disk), ledger_(ledger), bug_(bug), world_(seed), checker_(world_, disk, stage_, ledger, scenario.scaling, scenario.run,
                 scenario.disk_faults.error_percent + scenario.disk_faults.report_error_percent > 0) {
    if (trace) world_.keep_trace();
    world_.be_late(scenario.late_percent);
    world_.before_message = [this](const Delivery& delivery) {
      remember(delivery);
      checker_.before(delivery);
    };
    world_.after_step = [this] {
      stage_.poll();
      checker_.after();
    };
    idle_actors_ = world_.system().registry().running();
  }
  ~Driver() {
    for (const auto& [id, address] : seen_) {
      if (const auto actor = caf::actor_cast<caf::actor>(address)) caf::anon_send_exit(actor, caf::exit_reason::kill);
    }
    for (auto* actor : {&trainer_, &listener_}) {
      if (*actor) caf::anon_send_exit(*actor, caf::exit_reason::kill);
      *actor = nullptr;
    }
    for (int i = 0; i < 100'000 && world_.system().registry().running() > idle_actors_ && world_.step(); ++i) {
    }
  }
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  /// @param crash after how long everything stops at once.
  void run(std::optional<Duration> crash) {
    spawn();
    schedule_nuisances();
    while (!checker_.result() && !checker_.violation()) {
      if (crash && world_.now() >= *crash) return;
      if (!world_.step()) return checker_.violate("nothing is left to happen, and the run has not ended");
      if (world_.num_messages() > most_messages) return checker_.violate("the messages do not end");
      const auto limit = second_stop_ ? *second_stop_ + after_second_stop + 200 * scenario_.disk_faults.slowest : patience + 20min;
      if (world_.now() > limit) return checker_.violate("the run has not ended");
    }
    if (scenario_.calm && !checker_.violation()) check_calm();
    wind_down();
  }
  /// Whatever happens to a driver, it leaves nothing behind.
  void kill() {
    caf::anon_send_exit(trainer_, caf::exit_reason::kill);
    checker_.note_kill();
    wind_down();
  }

  World& world() { return world_; }
  Checker& checker() { return checker_; }

 private:
  void spawn() {
    TrainerSetup setup;
    setup.function = "train";
    setup.config_json = "{}";
    setup.scaling = scenario_.scaling;
    setup.run = scenario_.run;
    listener_ = world_.system().spawn([this]() -> caf::behavior {
      return {[this](const RunStarted& news) { checker_.heard(news); },
              [this](const ReportArrived& news) { checker_.heard(news); },
              [this](const Progressed&) {},
              [this](const CheckpointCommitted& news) { checker_.heard(news); },
              [this](const CheckpointFailed& news) { checker_.heard(news); },
              [this](const RunWarning& news) { checker_.heard(news); },
              [this](const RunEnded& news) { checker_.heard(news); }};
    });
    setup.listeners = {listener_};
    setup.seed = static_cast<std::uint32_t>(world_.random.next());
    setup.make_placer = [this](const StartGroup& group) { return make_simulated_placer(stage_, scenario_.rank_faults, group); };
    setup.spawn_keeper = [this](caf::actor_system& system, const caf::actor& trainer) {
      KeeperParts parts;
      parts.own_thread = false;
      parts.open_storage = [this](const RunConfig&, const auto&) {
        return open_simulated_storage(world_, disk_, scenario_.disk_faults, checker_.disk_news());
      };
      parts.open_memory = [this](const RunConfig&, const auto&) { return open_simulated_memory(disk_.memory); };
      return spawn_keeper_with_bug(system, trainer, std::move(parts), bug_);
    };
    trainer_ = world_.system().spawn(trainer_behavior, std::move(setup));
  }

  void schedule_nuisances() {
    const auto stop = scenario_.stop ? *scenario_.stop : patience;
    const auto second = scenario_.stop ? scenario_.second_stop : std::optional<Duration>{5min};
    for (const auto& [time, size] : scenario_.resizes) {
      world_.after(time, [this, size = size] {
        if (trainer_) caf::anon_send(trainer_, ResizeRun{size});
      });
    }
    world_.after(stop, [this] {
      if (trainer_ && !scenario_.stop && !checker_.result()) checker_.violate("nobody has stopped the run, and it has not ended");
      ask_to_stop(false);
    });
    if (second) {
      world_.after(stop + *second, [this] { ask_to_stop(true); });
    } else {
      world_.after(patience, [this] { ask_to_stop(true); });
    }
    if (scenario_.exit) {
      world_.after(*scenario_.exit, [this] {
        if (trainer_) caf::anon_send_exit(trainer_, caf::exit_reason::user_shutdown);
      });
    }
    if (scenario_.replays || bug_ == Bug::StaleAttempt) replay_later();
    if (scenario_.meddles) world_.after(world_.random.time(0ms, 4s), [this] { meddle(); });
  }
  void ask_to_stop(bool again) {
    if (again) second_stop_ = world_.now();
    if (trainer_) caf::anon_send(trainer_, StopRun{"enough", scenario_.preempts});
  }

  void check_calm() {
    const auto& result = *checker_.result();
    const int expected = scenario_.training.num_steps / scenario_.training.checkpoint_every;
    if (!result.ok() || checker_.num_attempts() != 1) checker_.violate("nothing went wrong, and the run failed");
    if (static_cast<int>(ledger_.told.size()) != expected) {
      checker_.violate(std::to_string(ledger_.told.size()) + " checkpoints were committed, not " + std::to_string(expected));
    }
  }

  // ---- old messages come again
  void remember(const Delivery& delivery) {
    seen_.insert_or_assign(delivery.receiver.id(), delivery.receiver.address());
    if (delivery.to("troupe.group")) group_ = delivery.receiver.address();
    if (delivery.to("troupe.rank") || delivery.to("troupe.group") || delivery.to("troupe.keeper")) meddled_with_.push_back(delivery.receiver.address());
    if (!delivery.to("troupe.group") || old_.size() > 60) return;
    keep_if<Reported, CheckpointWritten, RankDone, RankLost, StopCounted, BarrierReached, RankStarted>(delivery);
  }
  template <class... Ts>
  void keep_if(const Delivery& delivery) {
    (keep_one(delivery.as<Ts>()), ...);
  }
  template <class T>
  void keep_one(const T* message) {
    if (!message) return;
    old_.push_back([message = *message, this](Attempt current) mutable {
      if (message.attempt >= current) return;
      auto again = message;
      if (bug_ == Bug::StaleAttempt) again.attempt = current;
      if (bug_ == Bug::StaleAttempt && !std::is_same_v<T, Reported>) return;
      const bool to_trainer = bug_ == Bug::None && world_.random.chance(30);
      const auto to = to_trainer ? trainer_ : caf::actor_cast<caf::actor>(group_);
      if (to) caf::anon_send(to, std::move(again));
    });
  }
  void replay_later() {
    world_.after(world_.random.time(1ms, 400ms), [this] {
      if (!old_.empty()) old_[world_.random.next() % old_.size()](checker_.attempt());
      if (!checker_.result() && world_.now() < patience) replay_later();
    });
  }

  // ---- somebody tells an actor to exit
  void meddle() {
    if (meddled_with_.empty()) return;
    const auto actor = caf::actor_cast<caf::actor>(meddled_with_[world_.random.next() % meddled_with_.size()]);
    if (actor) caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
  }

  // ---- the end
  void wind_down() {
    trainer_ = nullptr;
    const auto limit = world_.now() + 3min;
    while (world_.now() < limit && !checker_.violation() && world_.step()) {
    }
    const auto left = world_.system().registry().running() - idle_actors_;
    if (left != 1 && !checker_.violation()) checker_.violate(std::to_string(left - 1) + " actors are left: " + names_of_living());
    if (stage_.placers != 0) checker_.violate("a placer is left");
  }
  std::string names_of_living() {
    std::string names;
    for (const auto& [id, address] : seen_) {
      const auto actor = caf::actor_cast<caf::actor>(address);
      if (!actor || actor == listener_) continue;
      const auto* local = dynamic_cast<caf::local_actor*>(caf::actor_cast<caf::abstract_actor*>(actor));
      names += std::string(local ? local->name() : "?") + "#" + std::to_string(id) + " ";
    }
    return names;
  }

  const Scenario& scenario_;
  Disk& disk_;
  Ledger& ledger_;
  const Bug bug_;
  World world_;
  Stage stage_{world_, disk_, scenario_.training, scenario_.write_error_percent};
  Checker checker_;
  caf::actor trainer_, listener_;
  caf::actor_addr group_;
  std::map<caf::actor_id, caf::actor_addr> seen_;
  std::vector<caf::actor_addr> meddled_with_;
  std::vector<std::function<void(Attempt)>> old_;
  std::optional<Duration> second_stop_;
  std::size_t idle_actors_ = 0;
};

void restart(Disk& disk, Ledger& ledger, Random& random) {
  using Kept = test::SimulatedFileSystem::Kept;
  const Kept kept[] = {Kept::Nothing, Kept::Everything, Kept::Parts};
  const auto how = kept[random.between(0, 2)];
  disk.files.restart(how, random.next());
  if (how != Kept::Everything) {  // the power was cut; else the driver was killed
    disk.memory.clear();
    disk.reports.resize(disk.reports.size() - random.next() % (disk.reports.size() / 4 + 1));
  }
  ledger.committed_once = disk.visible();
  for (const auto index : ledger.committed_once) ledger.doomed.erase(index);
  ledger.records = disk.records();
}

void add(Findings& findings, Driver& driver) {
  auto& checker = driver.checker();
  ++findings.num_drivers;
  findings.num_attempts += checker.num_attempts();
  findings.num_growths += checker.num_growths();
  findings.num_messages += driver.world().num_messages();
  findings.fingerprint = findings.fingerprint * 31 + driver.world().fingerprint();
  findings.trace = driver.world().trace();
  if (checker.violation()) findings.violation = checker.violation();
  if (!checker.result()) return;
  findings.num_ok += checker.result()->ok() ? 1 : 0;
  findings.num_stopped += checker.result()->stopped_early ? 1 : 0;
  findings.num_reports += static_cast<int>(checker.result()->history.size());
  findings.num_checkpoints += static_cast<int>(checker.result()->checkpoints.size());
}

}  // namespace

Findings simulate(std::uint64_t seed, Bug bug, bool trace) {
  const auto scenario = draw_scenario(seed);
  Random random{seed ^ 0x5eed};
  Findings findings;
  Ledger ledger;
  std::vector<std::unique_ptr<Disk>> disks;  // the one of a driver outlives it
  disks.push_back(std::make_unique<Disk>());
  for (int crashes = 0; crashes <= scenario.max_crashes && !findings.violation; ++crashes) {
    auto& disk = *disks.back();
    Driver driver{scenario, disk, ledger, random.next(), bug, trace};
    driver.run(crashes < scenario.max_crashes ? scenario.crash : std::nullopt);
    if (driver.checker().result() || driver.checker().violation()) {
      add(findings, driver);
      break;
    }
    disks.push_back(std::make_unique<Disk>(disk));
    auto at_crash = ledger;
    driver.kill();
    add(findings, driver);
    ledger = std::move(at_crash);
    restart(*disks.back(), ledger, random);
  }
  return findings;
}

}  // namespace troupe::sim

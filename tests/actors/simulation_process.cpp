#include "simulation_process.hpp"

#include "../../actors/beats.hpp"

#include <utility>

namespace troupe::sim {

using namespace std::chrono_literals;

namespace {

/// The process to its proxy: it is gone, and all that it sent has come or is lost.
struct Gone {
  std::optional<int> signal;
};

/// The proxy to itself.
struct KillNow {};

}  // namespace

}  // namespace troupe::sim

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::sim::Gone)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::sim::KillNow)

namespace troupe::sim {

namespace {

class Process : public std::enable_shared_from_this<Process> {
 public:
  Process(caf::actor_system& system, Stage& stage, ProcessPlan plan, caf::actor proxy)
      : system_(system), stage_(stage), plan_(std::move(plan)), proxy_(std::move(proxy)) {}

  void start() {
    auto& random = stage_.world.random;
    stage_.world.after(random.time(1ms, 300ms), [me = shared_from_this()] { me->run(); });
    if (plan_.fate.kind == Fate::Kind::Dies) stage_.world.after(random.time(0ms, 2s), [me = shared_from_this()] { me->end(9); });
    if (random.chance(plan_.break_percent)) stage_.world.after(random.time(0ms, 2s), [me = shared_from_this()] { me->break_link(); });
  }
  void send_down(caf::message message) {
    down_due_ = std::max(down_due_, stage_.world.now() + delay());
    stage_.world.after(down_due_ - stage_.world.now(), [me = shared_from_this(), message = std::move(message)] {
      if (me->is_over_) return;
      me->rank_ ? caf::anon_send(me->rank_, message) : me->early_.push_back(message);
    });
  }
  void kill() {
    stage_.world.after(stage_.world.random.time(0ms, 20ms), [me = shared_from_this()] { me->end(9); });
  }
  void end(std::optional<int> signal) {
    if (std::exchange(is_over_, true)) return;
    early_.clear();
    if (worker_) worker_->kill();
    worker_.reset();
    for (auto* actor : {&rank_, &up_}) {
      if (*actor) caf::anon_send_exit(*actor, caf::exit_reason::kill);
      *actor = nullptr;
    }
    const auto drained = std::max(Duration{0}, up_due_ - stage_.world.now());
    stage_.world.after(drained + stage_.world.random.time(0ms, 30ms), [me = shared_from_this(), signal] {
      caf::anon_send(me->proxy_, Gone{signal});
      me->proxy_ = nullptr;
    });
  }

 private:
  Duration delay() { return stage_.world.random.time(0ms, plan_.slowest_link); }

  void run() {
    if (is_over_) return;
    up_ = system_.spawn([me = shared_from_this()](caf::event_based_actor* self) -> caf::behavior {
      self->set_exit_handler([](const caf::exit_msg&) {});  // its rank has ended: the process follows by itself
      self->set_default_handler([me](caf::scheduled_actor*, caf::message_view& view) -> caf::result<caf::message> {
        me->send_up(view.move_content_to_message());
        return caf::message{};
      });
      return {[](caf::unit_t) {}};
    });
    auto worker = simulated_worker(stage_, plan_.gathering, plan_.fate, [weak = weak_from_this()](std::shared_ptr<SimulatedRank> rank) {
      if (const auto me = weak.lock()) me->worker_ = std::move(rank);
    });
    rank_ = spawn_rank(system_, std::move(worker), nullptr, up_);
    for (auto& message : std::exchange(early_, {})) caf::anon_send(rank_, std::move(message));
  }

  void send_up(caf::message message) {
    if (is_over_ || is_cut_) return;
    const bool last = message.match_elements<RankDone>() || message.match_elements<RankLost>();
    up_due_ = std::max(up_due_, stage_.world.now() + delay());
    stage_.world.after(up_due_ - stage_.world.now(), [me = shared_from_this(), message = std::move(message)] {
      if (!me->is_cut_ && me->proxy_) caf::anon_send(me->proxy_, message);
    });
    if (!last) return;
    // It ends by itself, mostly.
    const bool hangs = stage_.world.random.chance(5);
    if (!hangs) stage_.world.after(stage_.world.random.time(0ms, 100ms), [me = shared_from_this()] { me->end({}); });
  }

  void break_link() {
    is_cut_ = true;
    end(9);
  }

  caf::actor_system& system_;
  Stage& stage_;
  const ProcessPlan plan_;
  caf::actor proxy_, up_, rank_;
  std::shared_ptr<SimulatedRank> worker_;
  std::vector<caf::message> early_;
  Duration down_due_{0}, up_due_{0};
  bool is_over_ = false, is_cut_ = false;
};

struct ProxyState {
  static inline const char* name = "sim.proxy";
  caf::event_based_actor* self = nullptr;
  caf::actor group;
  std::shared_ptr<Process> process;
  ProcessPlan plan;
  bool has_started = false, was_killed = false;
  std::optional<RunError> own_error;
  std::optional<RankDone> done;
  std::optional<RankLost> lost;

  ~ProxyState() {
    if (process) process->end(9);  // killed: its process goes with it
  }
  template <class News>
  void tell_group(News news) {
    self->send(group, std::move(news));
  }
  void kill() {
    was_killed = true;
    process->kill();
  }
  void kill_later() { self->delayed_send(self, plan.stop_grace, KillNow{}); }
  void abort(const AbortRank& order) {
    if (!own_error) own_error = error_of(Errc::Aborted, order.reason);
    if (!has_started || order.at_once) return kill();
    process->send_down(caf::make_message(order));
    kill_later();
  }
  RunError error_of(Errc code, const std::string& text) const {
    RunError error;
    error.code = code;
    error.message = text;
    error.rank = plan.spec.rank;
    return error;
  }
  RunError cause(const Gone& gone) const {
    if (lost) return lost->error;
    if (own_error && was_killed) return *own_error;
    return gone.signal ? error_of(Errc::RankKilled, "its process was killed") : error_of(Errc::RankExited, "its process ended");
  }
  void ended(const Gone& gone) {
    if (done && !lost) {
      self->send(group, *done);
    } else {
      auto error = cause(gone);
      if (error.code != Errc::Aborted) plan.gathering->abort("rank " + std::to_string(plan.spec.rank) + " failed: " + error.message);
      self->send(group, RankLost{plan.spec.attempt, plan.spec.rank, std::move(error)});
    }
    self->quit();
  }
};

caf::behavior proxy(caf::stateful_actor<ProxyState>* self, Stage* stage, ProcessPlan plan, const caf::actor& group) {
  auto& state = self->state;
  state.self = self;
  state.group = group;
  state.plan = plan;
  state.process = std::make_shared<Process>(self->system(), *stage, std::move(plan), caf::actor_cast<caf::actor>(self));
  self->monitor(group);
  self->set_down_handler([&state](const caf::down_msg&) { state.kill(); });
  state.process->start();
  return {
      [&state](const RunRank& order) { state.process->send_down(caf::make_message(order)); },
      [&state](const CountForStop& order) { state.process->send_down(caf::make_message(order)); },
      [&state](const StopAfter& order) { state.process->send_down(caf::make_message(order)); },
      [&state](const BarrierPassed& order) { state.process->send_down(caf::make_message(order)); },
      [&state](const AbortRank& order) { state.abort(order); },
      [&state](const AskBeat& order) { state.process->send_down(caf::make_message(order)); },
      [&state](const AskStacks& order) { state.process->send_down(caf::make_message(order)); },
      [&state](const Beat& news) { state.tell_group(news); },
      [&state](const StacksTold& news) { state.tell_group(news); },
      [&state](KillNow) { state.kill(); },
      [&state](const RankStarted& news) {
        state.has_started = true;
        state.tell_group(news);
      },
      [&state](const Reported& news) { state.tell_group(news); },
      [&state](const CheckpointWritten& news) { state.tell_group(news); },
      [&state](const Progressed& news) { state.tell_group(news); },
      [&state](const BarrierReached& news) { state.tell_group(news); },
      [&state](const StopCounted& news) { state.tell_group(news); },
      [&state](const RankDone& news) {
        state.done = news;
        state.kill_later();
      },
      [&state](const RankLost& news) {
        state.lost = news;
        state.kill_later();
      },
      [&state](const Gone& gone) { state.ended(gone); },
  };
}

}  // namespace

caf::actor spawn_simulated_process(caf::actor_system& system, Stage& stage, ProcessPlan plan, const caf::actor& group) {
  return system.spawn(proxy, &stage, std::move(plan), group);
}

}  // namespace troupe::sim

#include "beats.hpp"
#include "crash_handler.hpp"
#include "crash_report.hpp"
#include "exceptions.hpp"
#include "memory_kills.hpp"
#include "rank_context.hpp"
#include "rank_worker.hpp"

#include <troupe/config.hpp>
#include <troupe/device_errors.hpp>
#include <troupe/failure_rules.hpp>
#include <troupe/rank.hpp>
#include <troupe/start_limits.hpp>

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <caf/actor_system.hpp>
#include <caf/stateful_actor.hpp>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace troupe {

namespace {

/// Control actor to itself: the worker had its time to end after an abort.
struct WorkerOverdue {};

/// Control actor to itself: has the thread written its stack?
struct StackDue {
  int looks_left = 0;
};

}  // namespace

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::WorkerOverdue)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StackDue)

namespace troupe {

namespace {

RunError error_of(std::exception_ptr exception, int rank) {
  RunError error;
  error.rank = rank;
  try {
    std::rethrow_exception(exception);
  } catch (const Failure& failure) {
    error.code = failure.code();
    error.message = failure.what();
    // What a library of the GPU said says more than that a call of it failed.
    const bool is_vague = error.code == Errc::Internal || error.code == Errc::Unsupported || error.code == Errc::StartFailed;
    if (const auto device = device_error(error.message); device && is_vague) error.code = device->code;
  } catch (const std::exception& other) {
    error.message = other.what();
    const auto device = device_error(error.message);
    error.code = ran_out_of_memory(other) ? Errc::OutOfMemory : device ? device->code : Errc::TrainFunctionFailed;
  } catch (...) {
    error.code = Errc::TrainFunctionFailed;
    error.message = "the train function threw something that is no std::exception";
  }
  return error;
}

// Pins the calling thread to `count` of the cores that this process may use, the `place`-th such share of them.
void pin_to_cores(int place, int count) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &allowed)) cores.push_back(core);
  }
  cpu_set_t mine;
  CPU_ZERO(&mine);
  for (int i = 0; i < count; ++i) CPU_SET(cores[static_cast<std::size_t>(place * count + i) % cores.size()], &mine);
  pthread_setaffinity_np(pthread_self(), sizeof mine, &mine);
}

const TrainFunction& find_function(const TrainFunctions& functions, const std::string& wanted) {
  if (const auto found = functions.find(wanted); found != functions.end()) return found->second;
  std::string names;
  for (const auto& [name, function] : functions) names += (names.empty() ? "" : ", ") + name;
  throw Failure{Errc::NotFound, "this program has no train function '" + wanted + "'; it has: " + names};
}

// Runs the train function on the calling thread.
WorkerEnded run_train_function(const TrainFunction& function, const RunRank& run,
                               const std::shared_ptr<RankChannel>& channel, std::shared_ptr<Communicator> seat,
                               std::shared_ptr<KeptObjects> kept, const DatasetFunctions& datasets) {
  WorkerEnded ended;
  auto* const box = channel->box();
  const BlackBoxScope scope{box};
  if (box) box->begin(run.attempt, run.rank);
  try {
    const Config config(nlohmann::ordered_json::parse(run.config_json));
    RankContext context{run, channel, seat, kept ? std::move(kept) : std::make_shared<KeptObjects>(), RankDatasets{datasets, config, run.data}};
    channel->send(RankStarted{run.attempt, run.rank, getpid()});
    function(context, config);
    context.finish_saves();
    ended.unused_config_keys = config.unused();
  } catch (...) {
    ended.error = error_of(std::current_exception(), run.rank);
    if (box) {
      ended.error->step = box->steps.load();
      ended.error->details = "last events of rank " + std::to_string(run.rank) + ":\n" + detail::events_text(*box, std::chrono::steady_clock::now(), ended.error->code == Errc::Aborted ? 20 : 1000);
    }
    ended.error->pid = getpid();
    // Peers that wait for this rank learn why, before they could notice that it has left.
    if (ended.error->code != Errc::Aborted) {
      seat->abort("rank " + std::to_string(run.rank) + " failed: " + ended.error->message);
    }
  }
  if (box) box->end();
  return ended;
}

/// The process's own where it is a rank's, so that others see it; nullptr when there is no memory for one.
std::shared_ptr<detail::BlackBoxMemory> take_black_box() {
  if (auto shared = detail::process_black_box()) return shared;
  try {
    return detail::BlackBoxMemory::of_thread();
  } catch (const Failure&) {
    return nullptr;
  }
}

WorkerEnded out_of_memory(int rank) {
  WorkerEnded ended;
  ended.error.emplace();
  ended.error->code = Errc::OutOfMemory;
  ended.error->message = "memory ran out: there was none left to say where";
  ended.error->rank = rank;
  return ended;
}

/// A thread of this process.
class ThreadWorker final : public RankWorker {
 public:
  ThreadWorker(const TrainFunction& function, const RunRank& order, std::shared_ptr<RankChannel> channel,
               std::shared_ptr<Communicator> seat, std::shared_ptr<KeptObjects> kept, const DatasetFunctions& datasets)
      : seat_(seat) {
    thread_ = start_thread("rank " + std::to_string(order.rank), [function, order, channel = std::move(channel), seat = std::move(seat),
                                                                  kept = std::move(kept), datasets]() mutable {
      const detail::HandlerStack handler_stack;
      WorkerEnded ended;
      try {
        pthread_setname_np(pthread_self(), ("rank " + std::to_string(order.rank)).c_str());  // in stacks, and in top
        if (order.scaling.pin_threads) pin_to_cores(order.local_rank, order.scaling.cpus_per_worker);
        ended = run_train_function(function, order, channel, seat, kept, datasets);
      } catch (const std::bad_alloc&) {  // also while an error was being described
        seat->abort("memory ran out");  // short enough to need none
        do_patiently([&] { ended = out_of_memory(order.rank); });
      }
      seat.reset();  // peers that still wait for this rank see it leave
      do_patiently([&] { channel->tell_control(WorkerEnded{ended}); });
    });
  }
  ~ThreadWorker() override {
    if (!thread_.joinable()) return;
    if (const auto seat = seat_.lock()) seat->abort("the run was ended");
    thread_.detach();
  }
  void join() override { thread_.join(); }

 private:
  std::weak_ptr<Communicator> seat_;
  std::thread thread_;
};

constexpr std::chrono::seconds grace_alone{5};

struct RankState {
  static inline const char* name = "troupe.rank";

  caf::event_based_actor* self = nullptr;
  StartWorker start_worker;
  caf::actor group;
  std::shared_ptr<RankChannel> channel;
  std::shared_ptr<Communicator> seat;      // until the worker has it
  std::weak_ptr<Communicator> taken_seat;  // the worker's, to abort it
  RunRank run;
  std::unique_ptr<RankWorker> worker;  // while it runs
  bool told_to_exit = false;           // by another than its group
  std::uint64_t stale = 0;  // messages of another attempt, dropped

  ~RankState() {
    if (channel) channel->close();
  }

  bool is_stale(Attempt attempt) {
    if (attempt == run.attempt) return false;
    ++stale;
    return true;
  }

  void begin(RunRank order) {
    run = std::move(order);
    try {
      channel = std::make_shared<RankChannel>(caf::actor_cast<caf::actor>(self), group, take_black_box());
      taken_seat = seat;
      worker = start_worker(run, channel, std::move(seat));
    } catch (const std::exception&) {
      lose(error_of(std::current_exception(), run.rank));
    }
  }

  void end(const WorkerEnded& ended) {
    std::exchange(worker, nullptr)->join();  // it is past its last line
    if (ended.error) return lose(*ended.error, failure_rule(ended.error->code).keeps_process);
    if (told_to_exit) return lose(error_of(std::make_exception_ptr(Failure{Errc::Aborted, "the rank was told to exit"}), run.rank), true);
    self->send(group, RankDone{run.attempt, run.rank, channel->stop_calls(), ended.unused_config_keys});
    self->quit();
  }

  void tell_beat() {
    if (const auto* box = channel->box()) self->send(group, Beat{run.attempt, run.rank, beat_of(*box)});
  }

  // Of the threads of a program that the user started only the rank's own is interrupted.
  void ask_stack() {
    auto* box = channel->box();
    const auto thread = box ? box->training_thread.load() : 0;
    if (thread == 0 || !detail::can_ask_threads_for_stacks()) return tell_stack();
    for (auto& stack : box->stacks) stack.ready.store(0);
    box->next_stack.store(0);
    if (syscall(SYS_tgkill, getpid(), thread, detail::stack_signal()) != 0) return tell_stack();
    stack_due({30});
  }

  void stack_due(StackDue due) {
    if (channel->box()->stacks[0].ready.load() != 0 || due.looks_left == 0) return tell_stack();
    self->delayed_send(self, std::chrono::milliseconds{10}, StackDue{due.looks_left - 1});
  }

  void tell_stack() {
    const auto* box = channel->box();
    std::string text;
    if (box && box->stacks[0].ready.load() != 0) {
      std::ostringstream maps;
      maps << std::ifstream{"/proc/self/maps"}.rdbuf();
      text = detail::stacks_text(*box, maps.str());
    }
    if (text.empty()) text = "its thread wrote no stack; gdb -p " + std::to_string(getpid()) + " shows it\n";
    if (box) text += "last events of rank " + std::to_string(run.rank) + ":\n" + detail::events_text(*box, std::chrono::steady_clock::now());
    self->send(group, StacksTold{run.attempt, run.rank, std::move(text)});
  }

  void lose(RunError error, bool is_reusable = false) {
    self->send(group, RankLost{run.attempt, run.rank, std::move(error), is_reusable});
    self->quit();
  }

  void abort(const std::string& reason) {
    channel->abort(reason);
    if (const auto taken = taken_seat.lock()) taken->abort(reason);
  }

  void exited(const caf::exit_msg& exit) {
    if (!exit.reason || exit.reason == caf::exit_reason::normal) return;
    if (!worker) return self->quit(exit.reason);  // the group hears of it by its link
    told_to_exit = true;  // a train function that returns since should_stop() is true has not done its work
    abort("the rank was told to exit");  // the group hears of it when the worker ends
  }

  // The group is gone: ends the worker, within a grace period.
  void end_alone() {
    group = nullptr;
    if (!worker) return self->quit();
    abort("the run was ended");
    self->delayed_send(self, grace_alone, WorkerOverdue{});
  }
};

using RankActor = caf::stateful_actor<RankState>;

caf::behavior running(RankActor* self) {
  auto& state = self->state;
  return {
      [&state](const CountForStop& order) {
        if (state.is_stale(order.attempt)) return;
        state.self->send(state.group, StopCounted{order.attempt, state.run.rank, state.channel->hold_for_stop()});
      },
      [&state](const StopAfter& order) {
        if (!state.is_stale(order.attempt)) state.channel->stop_after(order.calls);
      },
      [&state](BarrierPassed& news) {
        if (!state.is_stale(news.attempt)) state.channel->barrier_passed(std::move(news));
      },
      [&state](const AbortRank& order) {
        if (!state.is_stale(order.attempt)) state.abort(order.reason);
      },
      [&state](const AskBeat& order) {
        if (!state.is_stale(order.attempt)) state.tell_beat();
      },
      [&state](const AskStacks& order) {
        if (!state.is_stale(order.attempt)) state.ask_stack();
      },
      [&state](StackDue due) { state.stack_due(due); },
      [&state](const WorkerEnded& ended) { state.end(ended); },
      [&state](WorkerOverdue) { state.self->quit(); },
  };
}

caf::behavior waiting(RankActor* self, StartWorker start_worker, std::shared_ptr<Communicator> seat,
                      const caf::actor& group) {
  auto& state = self->state;
  state.self = self;
  state.start_worker = std::move(start_worker);
  state.seat = std::move(seat);
  state.group = group;
  keep_exceptions(self);
  self->monitor(group);
  self->set_down_handler([&state](const caf::down_msg&) { state.end_alone(); });
  self->set_exit_handler([&state](const caf::exit_msg& exit) { state.exited(exit); });
  return {
      [self](RunRank& order) {
        self->become(running(self));
        self->state.begin(std::move(order));
      },
      [self](const AbortRank&) { self->quit(); },  // never begun
  };
}

}  // namespace

caf::actor spawn_thread_rank(caf::actor_system& system, const TrainFunctions& functions, std::shared_ptr<Communicator> seat,
                             caf::actor group, std::shared_ptr<KeptObjects> kept, DatasetFunctions datasets) {
  auto start = [&functions, kept = std::move(kept), datasets = std::move(datasets)](const RunRank& order, std::shared_ptr<RankChannel> channel, std::shared_ptr<Communicator> taken) {
    return std::make_unique<ThreadWorker>(find_function(functions, order.function), order, std::move(channel), std::move(taken), kept, datasets);
  };
  return spawn_rank(system, start, std::move(seat), std::move(group));
}

caf::actor spawn_rank(caf::actor_system& system, StartWorker start_worker, std::shared_ptr<Communicator> seat, caf::actor group) {
  return system.spawn(waiting, std::move(start_worker), std::move(seat), std::move(group));
}

}  // namespace troupe

#include "rank_proxy.hpp"

#include "beats.hpp"
#include "crash_report.hpp"
#include "exceptions.hpp"
#include "link_mail.hpp"

#include <caf/actor_system.hpp>
#include <caf/stateful_actor.hpp>
#include <algorithm>
#include <cstring>

namespace troupe::detail {

namespace {

/// The host's thread to the proxy.
struct ProcessGone {
  ProcessEnded end;
};

/// The pool's thread to the proxy: what the process had printed when its rank was lost.
struct OutputRead {
  std::vector<std::string> last_lines;
};

/// The proxy to itself.
struct KillOverdue {};
struct StacksDue {
  int looks_left = 0;
};

}  // namespace

}  // namespace troupe::detail

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::detail::ProcessGone)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::detail::OutputRead)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::detail::KillOverdue)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::detail::StacksDue)

namespace troupe::detail {

namespace {

constexpr std::chrono::milliseconds start_patience{500};

struct ProxyState {
  static inline const char* name = "troupe.rank_proxy";

  caf::event_based_actor* self = nullptr;
  caf::actor group;
  std::shared_ptr<RankProcesses> processes;
  std::shared_ptr<RankProcess> process;
  std::shared_ptr<RankObserver> observer;
  std::string node;  // of the process, when it is gone
  Attempt attempt = 0;
  int rank = 0;
  std::chrono::milliseconds stop_grace{};
  bool has_started = false;
  bool was_killed = false;
  std::optional<RunError> own_error;  // why the proxy ended it
  std::optional<RankDone> done;
  std::optional<RankLost> lost;
  std::optional<std::uint64_t> resize_after;  // calls of should_stop()

  ~ProxyState() {
    if (process) process->kill();
  }

  template <class Order>
  void tell_rank(const Order& order) {
    if (order.attempt != attempt || !process) return;
    if (const auto sent = process->send(order); !sent.ok()) end_with(sent.code(), sent.text());
  }

  template <class News>
  bool is_mine(const News& news) {
    if (news.attempt == attempt && news.rank == rank) return true;
    if (news.attempt < attempt) return false;  // of the attempt that the process was in before
    end_with(Errc::ProtocolError, "the process of rank " + std::to_string(rank) + " spoke for rank " +
                                      std::to_string(news.rank) + " of attempt " + std::to_string(news.attempt));
    return false;
  }

  template <class News>
  void tell_group(News news) {
    if (is_mine(news)) self->send(group, std::move(news));
  }

  void kill() {
    was_killed = true;
    if (process) process->kill();
  }

  void end_with(Errc code, const std::string& message) {
    if (!own_error) {
      own_error.emplace();
      own_error->code = code;
      own_error->message = message;
    }
    kill();
  }

  void abort(const AbortRank& order) {
    if (order.attempt != attempt || !process) return;
    if (!own_error) {
      own_error.emplace();
      own_error->code = Errc::Aborted;
      own_error->message = order.reason;
    }
    if (order.at_once) return kill();
    (void)process->send(order);
    // One that has not said that it runs is about to, or has nothing of the user's to end.
    kill_later(has_started ? stop_grace : std::min(stop_grace, start_patience));
  }

  void kill_later(std::chrono::milliseconds patience) { self->delayed_send(self, patience, KillOverdue{}); }

  // The first news that explains the end: the rank's own, else how its process ended, unless this side ended it.
  RunError cause_of(const ProcessEnded& end) const {
    if (lost) return lost->error;
    if (own_error && (was_killed || own_error->code != Errc::Aborted)) return *own_error;
    RunError error;
    const auto who = "the process of rank " + std::to_string(rank);
    if (!end.start.ok()) {
      error.code = end.start.code();
      error.message = end.start.text();
    } else if (!end.link.ok()) {
      error.code = end.link.code();
      error.message = who + ": " + end.link.text();
    } else if (end.status.by_signal) {
      error.code = Errc::RankKilled;
      error.signal = end.status.value;
      error.message = who + " was killed by signal " + std::to_string(end.status.value) + " (" +
                      signal_name(end.status.value) + ")";
    } else {
      error.code = Errc::RankExited;
      if (end.status.value >= 0) error.exit_code = end.status.value;
      error.message = who + " ended" +
                      (end.status.value >= 0 ? " with exit code " + std::to_string(end.status.value) : std::string()) +
                      " before its train function returned";
    }
    return error;
  }

  // Nothing of the rank is left: the last news.
  void ended(const ProcessEnded& end) {
    if (process) node = process->node();
    process.reset();
    if (done && !lost) {
      processes.reset();
      self->send(group, std::move(*done));
    } else {
      lose(cause_of(end), end.last_lines, false, end.places);
    }
    self->quit();
  }

  void tell_beat() {
    if (const auto beat = observer->beat(attempt)) self->send(group, Beat{attempt, rank, *beat});
  }

  void ask_stacks() {
    (void)observer->ask_stacks();
    stacks_due({30});
  }

  // Threads write them within microseconds, unless they cannot at all.
  void stacks_due(StacksDue due) {
    if (observer->have_stacks() || due.looks_left == 0) {
      self->send(group, StacksTold{attempt, rank, observer->stacks_told()});
    } else {
      self->delayed_send(self, std::chrono::milliseconds{10}, StacksDue{due.looks_left - 1});
    }
  }

  void lose(RunError error, const std::vector<std::string>& last_lines, bool is_reusable, std::optional<int> places = {}) {
    error.rank = rank;
    error.last_lines = last_lines;
    if (error.node.empty()) error.node = node;
    if (error.code != Errc::Aborted) processes->abort(attempt, "rank " + std::to_string(rank) + " failed: " + error.message);
    observer->complete(error, attempt, was_killed);  // looks up names: the others are free already
    processes.reset();
    self->send(group, RankLost{attempt, rank, std::move(error), is_reusable, places});
  }

  void rank_done(const RankDone& news) {
    if (!is_mine(news)) return;
    done = news;
    if (resize_after && news.calls > *resize_after && !was_killed) return read_output();  // the next attempt takes the process
    process->finish();
    kill_later(stop_grace);
  }

  void rank_lost(const RankLost& news) {
    if (!is_mine(news)) return;
    lost = news;
    if (!news.is_reusable || was_killed) {
      process->finish();
      return kill_later(stop_grace);
    }
    read_output();
  }

  void read_output() {
    process->read_output([me = caf::actor_cast<caf::actor>(self)](std::vector<std::string> lines) {
      caf::anon_send(me, OutputRead{std::move(lines)});
    });
  }

  // Its train function has ended: the process waits for the next attempt.
  void output_read(const OutputRead& news) {
    if (!process || was_killed) return;  // its end follows
    node = process->node();
    processes->give_back(std::exchange(process, nullptr));
    if (done && !lost) {
      processes.reset();
      self->send(group, std::move(*done));
      return self->quit();
    }
    lose(lost->error, news.last_lines, true);
    self->quit();
  }

  void start() {
    const auto me = caf::actor_cast<caf::actor>(self);
    ProcessHandlers handlers;
    handlers.arrived = [me](LinkMessage message) { deliver(me, std::move(message)); };
    handlers.ended = [me](ProcessEnded end) { caf::anon_send(me, ProcessGone{std::move(end)}); };
    process = processes->take(rank, std::move(handlers));
    observer = process->observer();
  }
};

using ProxyActor = caf::stateful_actor<ProxyState>;

caf::behavior proxy(ProxyActor* self, std::shared_ptr<RankProcesses> processes, const caf::actor& group, const RunRank& spec,
                    std::chrono::milliseconds stop_grace) {
  auto& state = self->state;
  state.self = self;
  keep_exceptions(self);
  state.group = group;
  state.processes = std::move(processes);
  state.attempt = spec.attempt;
  state.rank = spec.rank;
  state.stop_grace = stop_grace;
  self->monitor(group);
  // The group is gone: the process is killed, and nobody hears of it.
  self->set_down_handler([&state](const caf::down_msg&) { state.end_with(Errc::Aborted, "the group has ended"); });
  self->set_exit_handler([&state](const caf::exit_msg&) { state.end_with(Errc::Aborted, "the rank was told to exit"); });
  state.start();
  return {
      [&state](const RunRank& order) { state.tell_rank(order); },
      [&state](const CountForStop& order) { state.tell_rank(order); },
      [&state](const StopAfter& order) {
        if (order.is_resize && order.attempt == state.attempt) state.resize_after = order.calls;
        state.tell_rank(order);
      },
      [&state](const SeatsKnown& order) { state.tell_rank(order); },
      [&state](const BarrierPassed& order) { state.tell_rank(order); },
      [&state](const AbortRank& order) { state.abort(order); },
      [&state](KillOverdue) { state.kill(); },
      [&state](const AskBeat& order) {
        if (order.attempt == state.attempt) state.tell_beat();
      },
      [&state](const AskStacks& order) {
        if (order.attempt == state.attempt) state.ask_stacks();
      },
      [&state](StacksDue due) { state.stacks_due(due); },
      [&state](const SeatOpened& news) { state.tell_group(news); },
      [&state](const RankStarted& news) {
        state.has_started = state.has_started || news.attempt == state.attempt;
        state.tell_group(news);
      },
      [&state](const Reported& news) { state.tell_group(news); },
      [&state](const CheckpointWritten& news) { state.tell_group(news); },
      [&state](const Progressed& news) { state.tell_group(news); },
      [&state](const BarrierReached& news) { state.tell_group(news); },
      [&state](const StopCounted& news) { state.tell_group(news); },
      [&state](const RankDone& news) { state.rank_done(news); },
      [&state](const RankLost& news) { state.rank_lost(news); },
      [&state](const OutputRead& news) { state.output_read(news); },
      [&state](const ProcessGone& gone) { state.ended(gone.end); },
  };
}

}  // namespace

caf::actor spawn_rank_proxy(caf::actor_system& system, std::shared_ptr<RankProcesses> processes, caf::actor group, const RunRank& spec,
                            std::chrono::milliseconds stop_grace) {
  return system.spawn(proxy, std::move(processes), std::move(group), spec, stop_grace);
}

}  // namespace troupe::detail

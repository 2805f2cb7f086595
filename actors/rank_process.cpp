#include "rank_process.hpp"

#include "child_process.hpp"
#include "crash_handler.hpp"
#include "descriptor_socket.hpp"
#include "host_seat.hpp"
#include "link_mail.hpp"

#include <troupe/local_groups.hpp>
#include <troupe/rank.hpp>
#include <troupe/trainer.hpp>

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <caf/event_based_actor.hpp>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>

namespace troupe::detail {

namespace {

constexpr int exit_done = 0;
constexpr int exit_lost = 1;      // the group was told why
constexpr int exit_orphaned = 71;  // the group's process is gone
constexpr int exit_misused = 64;

// The rest of a program's life is not the rank's: no static destructors, no atexit (LibTorch's take 50 ms).
[[noreturn]] void end_process(int code) {
  std::cout.flush();
  std::fflush(nullptr);
  _exit(code);
}

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "%s is set, but %s. It is for Troupe's own use: unset it.\n", rank_start_variable, why.c_str());
  _exit(exit_misused);
}

bool is_socket(int fd, int wanted_type) {
  int type = 0;
  socklen_t size = sizeof type;
  return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == wanted_type;
}

void check_descriptors(const RankStart& start) {
  if (!is_socket(start.link_fd, SOCK_STREAM)) refuse("its link is no stream socket");
  if (!is_socket(start.seat_fd, SOCK_SEQPACKET)) refuse("its seats come over no socket of packets");
}

// From here on the process dies with its parent, keeps its descriptors to itself, and shows its output line by line.
void settle_in(const RankStart& start) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != start.parent) _exit(exit_orphaned);
  fcntl(start.link_fd, F_SETFD, FD_CLOEXEC);
  fcntl(start.seat_fd, F_SETFD, FD_CLOEXEC);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
}

// Without a box crashes are told by their signal alone.
void record_crashes() {
  struct stat status {};
  if (fstat(child_box_fd, &status) != 0 || !S_ISREG(status.st_mode)) return;
  fcntl(child_box_fd, F_SETFD, FD_CLOEXEC);
  record_crashes_in(BlackBoxMemory::open(child_box_fd));
}

/// The rank's way up: what its control actor tells the group goes over the link.
caf::behavior uplink(caf::event_based_actor* self, std::shared_ptr<Link> link) {
  const auto send = [link](const auto& news) {
    const auto sent = link->send(news);
    if (sent.ok()) return;
    RunError error;
    error.code = sent.code();
    error.message = sent.text();
    error.rank = news.rank;
    (void)link->send(RankLost{news.attempt, news.rank, std::move(error)});
    link->finish();  // which ends the process
  };
  self->set_exit_handler([](const caf::exit_msg&) {});
  return {
      [=](const RankStarted& news) { send(news); },
      [=](const Reported& news) { send(news); },
      [=](const CheckpointWritten& news) { send(news); },
      [=](const Progressed& news) { send(news); },
      [=](const BarrierReached& news) { send(news); },
      [=](const StopCounted& news) { send(news); },
      [=](const RankDone& news) { send(news); },
      [=](const RankLost& news) { send(news); },
  };
}

caf::actor_system_config& configure(caf::actor_system_config& config) {
  config.set("scheduler.policy", caf::atom("sharing"));
  config.set("scheduler.max-threads", 1);
  register_types(config);
  return config;
}

/// The ranks of a process, one after another: the link on one thread, the actors on another, the train function on a third.
class RankHost {
 public:
  RankHost(const RankStart& start, const TrainFunctions& functions, const DatasetFunctions& datasets)
      : start_(start), functions_(functions), datasets_(datasets), system_(configure(config_)) {}

  [[noreturn]] void run() {
    auto hello = start_.hello;
    hello.program = program_identity();
    Link::Handlers handlers;
    handlers.opened = [this] { up_ = system_.spawn(uplink, link_); };
    handlers.arrived = [this](LinkMessage message) { take(std::move(message)); };
    handlers.closed = [this](const Outcome& outcome) { closed(outcome); };
    link_ = Link::open(io_, start_.link_fd, Link::Side::Rank, std::move(hello), {}, std::move(handlers));
    io_.run();       // `closed` ends the process
    std::abort();
  }

 private:
  void take(LinkMessage message) {
    if (const auto* order = std::get_if<RunRank>(&message)) begin(*order);
    if (rank_) return deliver(rank_, std::move(message));
    if (!host_seat_) return;
    if (const auto* known = std::get_if<SeatsKnown>(&message)) return meet(*known);
    if (const auto* order = std::get_if<AbortRank>(&message); order && order->attempt == order_.attempt) {
      if (!host_seat_->is_joining()) return seated(nullptr, {Errc::Aborted, order->reason});
      host_seat_->abort(order->reason);
    }
    early_.push_back(std::move(message));
  }

  void begin(const RunRank& order) {
    rank_ = nullptr;
    host_seat_.reset();
    early_.clear();
    try {
      const auto memory = receive_descriptor(start_.seat_fd, order.attempt);
      auto seat = SharedGroup::join(memory.get(), order.local_rank);
      if (order.hosts.ranks_on.empty()) {
        rank_ = spawn_thread_rank(system_, functions_, std::move(seat), up_, kept_, datasets_);
      } else {
        host_seat_ = std::make_unique<HostSeat>(order, std::move(seat));
        order_ = order;
        (void)link_->send(host_seat_->opened());
      }
    } catch (const Failure& failure) {
      lose(order, failure.code(), failure.what());
    } catch (const std::exception& error) {
      lose(order, Errc::StartFailed, error.what());
    }
  }

  // The ranks of all hosts have told where they wait.
  void meet(const SeatsKnown& known) {
    if (known.attempt != order_.attempt) return;
    host_seat_->join(known, [this, attempt = known.attempt](std::shared_ptr<Communicator> seat, const Outcome& outcome) {
      boost::asio::post(io_, [this, attempt, seat = std::move(seat), outcome]() mutable {
        if (attempt == order_.attempt && host_seat_) seated(std::move(seat), outcome);
      });
    });
  }

  void seated(std::shared_ptr<Communicator> seat, const Outcome& outcome) {
    host_seat_.reset();
    const auto early = std::exchange(early_, {});
    if (!seat) return unseated(outcome);
    rank_ = spawn_thread_rank(system_, functions_, std::move(seat), up_, kept_, datasets_);
    for (const auto& message : early) deliver(rank_, message);
  }

  // Nothing of the user's has run: the process is as good as new.
  void unseated(const Outcome& outcome) {
    RunError error;
    error.code = outcome.code();
    error.message = outcome.text();
    error.rank = order_.rank;
    (void)link_->send(RankLost{order_.attempt, order_.rank, std::move(error), true});
  }

  void lose(const RunRank& order, Errc code, const std::string& text) {
    RunError error;
    error.code = code;
    error.message = text;
    error.rank = order.rank;
    (void)link_->send(RankLost{order.attempt, order.rank, std::move(error)});
    link_->finish();
  }

  // Everything was sent, or nobody is there any more.
  [[noreturn]] void closed(const Outcome& outcome) {
    if (!outcome.ok()) std::fprintf(stderr, "troupe: the link to the group broke: %s\n", outcome.text().c_str());
    end_process(outcome.ok() ? exit_done : exit_lost);
  }

  const RankStart start_;
  const TrainFunctions& functions_;
  const DatasetFunctions& datasets_;
  caf::actor_system_config config_;
  caf::actor_system system_;
  const std::shared_ptr<KeptObjects> kept_ = std::make_shared<KeptObjects>();
  boost::asio::io_context io_;
  std::shared_ptr<Link> link_;
  caf::actor up_;
  caf::actor rank_;  // none before the first, or when one could not begin
  // Of a group on several hosts, until all ranks have met.
  std::unique_ptr<HostSeat> host_seat_;
  RunRank order_;
  std::vector<LinkMessage> early_;
};

}  // namespace

std::string to_text(const RankStart& start) {
  std::ostringstream text;
  text << start.link_fd << ' ' << start.seat_fd << ' ' << start.parent << ' ' << start.hello.process << ' '
       << start.hello.nonce;
  return text.str();
}

std::optional<RankStart> take_rank_start() {
  const char* value = std::getenv(rank_start_variable);
  if (!value) return std::nullopt;
  RankStart start;
  std::istringstream text{value};
  std::string more;
  if (!(text >> start.link_fd >> start.seat_fd >> start.parent >> start.hello.process >> start.hello.nonce) || text >> more ||
      start.link_fd < 3 || start.seat_fd < 3 || start.hello.process < 0) {
    refuse("its value is not understood");
  }
  unsetenv(rank_start_variable);
  check_descriptors(start);
  return start;
}

std::string program_identity(const std::string& path) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) return "unknown";
  std::ostringstream text;
  text << std::hex << status.st_dev << '-' << status.st_ino << '-' << status.st_size << '-' << status.st_mtim.tv_sec
       << '.' << status.st_mtim.tv_nsec;
  return text.str();
}

void run_rank_process(const RankStart& start, const TrainFunctions& functions, const DatasetFunctions& datasets) {
  settle_in(start);
  record_crashes();
  // The process ends inside; nothing here is ever destroyed.
  (new RankHost{start, functions, datasets})->run();
}

}  // namespace troupe::detail

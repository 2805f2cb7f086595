#include "rank_process.hpp"

#include "child_process.hpp"
#include "crash_handler.hpp"
#include "io_thread.hpp"
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

#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <caf/event_based_actor.hpp>
#include <cstdio>
#include <cstdlib>
#include <future>
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

void check_descriptors(const RankStart& start) {
  struct stat status{};
  if (fstat(start.link_fd, &status) != 0 || !S_ISSOCK(status.st_mode)) refuse("its link is no socket");
  int type = 0;
  socklen_t size = sizeof type;
  if (getsockopt(start.link_fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) {
    refuse("its link is no stream socket");
  }
  if (fstat(start.group_fd, &status) != 0 || !S_ISREG(status.st_mode)) refuse("its group has no memory");
}

// From here on the process dies with its parent, keeps its descriptors to itself, and shows its output line by line.
void settle_in(const RankStart& start) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != start.parent) _exit(exit_orphaned);
  fcntl(start.link_fd, F_SETFD, FD_CLOEXEC);
  fcntl(start.group_fd, F_SETFD, FD_CLOEXEC);
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
caf::behavior uplink(caf::event_based_actor* self, std::shared_ptr<Link> link, int rank) {
  const auto send = [link, rank](LinkMessage message, Attempt attempt) {
    const auto sent = link->send(message);
    if (sent.ok()) return true;
    RunError error;
    error.code = sent.code();
    error.message = sent.text();
    error.rank = rank;
    (void)link->send(RankLost{attempt, rank, std::move(error)});
    return false;
  };
  // After its last message the link closes, which ends the process.
  const auto send_last = [send, link](LinkMessage message, Attempt attempt) {
    send(std::move(message), attempt);
    link->finish();
  };
  const auto send_or_end = [send, link](LinkMessage message, Attempt attempt) {
    if (!send(std::move(message), attempt)) link->finish();
  };
  self->set_exit_handler([](const caf::exit_msg&) {});
  return {
      [=](const RankStarted& news) { send_or_end(news, news.attempt); },
      [=](const Reported& news) { send_or_end(news, news.attempt); },
      [=](const CheckpointWritten& news) { send_or_end(news, news.attempt); },
      [=](const Progressed& news) { send_or_end(news, news.attempt); },
      [=](const BarrierReached& news) { send_or_end(news, news.attempt); },
      [=](const StopCounted& news) { send_or_end(news, news.attempt); },
      [=](const RankDone& news) { send_last(news, news.attempt); },
      [=](const RankLost& news) { send_last(news, news.attempt); },
  };
}

/// A rank in a process of its own: the link on one thread, the actors on another, the train function on a third.
class RankHost {
 public:
  RankHost(const RankStart& start, const TrainFunctions& functions) : start_(start), functions_(functions) {
    config_.set("scheduler.policy", caf::atom("sharing"));
    config_.set("scheduler.max-threads", 1);
    register_types(config_);
  }

  [[noreturn]] void run() {
    auto hello = start_.hello;
    hello.program = program_identity();
    Link::Handlers handlers;
    handlers.opened = [this] { opened_.set_value(); };
    handlers.arrived = [this](LinkMessage message) { take(std::move(message)); };
    handlers.closed = [this](const Outcome& outcome) { closed(outcome); };
    link_ = Link::open(io_.io(), start_.link_fd, Link::Side::Rank, std::move(hello), {}, std::move(handlers));
    opened_.get_future().wait();
    caf::actor_system system{config_};
    begin(system);
    for (;;) pause();  // `closed` ends the process
  }

 private:
  void begin(caf::actor_system& system) {
    try {
      std::shared_ptr<Communicator> seat = SharedGroup::join(start_.group_fd, start_.hello.rank);
      const auto up = system.spawn(uplink, link_, start_.hello.rank);
      rank_.set_value(spawn_thread_rank(system, functions_, std::move(seat), up));
    } catch (const Failure& failure) {
      lose(failure.code(), failure.what());
    } catch (const std::exception& error) {
      lose(Errc::StartFailed, error.what());
    }
  }

  void lose(Errc code, const std::string& text) {
    RunError error;
    error.code = code;
    error.message = text;
    error.rank = start_.hello.rank;
    (void)link_->send(RankLost{start_.hello.attempt, start_.hello.rank, std::move(error)});
    link_->finish();
    rank_.set_value({});
  }

  // On the link's thread. Waits for the actor when an order comes before it.
  void take(LinkMessage message) {
    if (ready_.valid()) rank_actor_ = ready_.get();
    if (!rank_actor_) return;
    deliver(rank_actor_, std::move(message));
  }

  // Everything was sent, or nobody is there any more.
  [[noreturn]] void closed(const Outcome& outcome) {
    if (!outcome.ok()) std::fprintf(stderr, "troupe: the link to the group broke: %s\n", outcome.text().c_str());
    end_process(outcome.ok() ? exit_done : exit_lost);
  }

  const RankStart start_;
  const TrainFunctions& functions_;
  caf::actor_system_config config_;
  std::promise<void> opened_;
  std::promise<caf::actor> rank_;
  std::future<caf::actor> ready_ = rank_.get_future();
  caf::actor rank_actor_;  // the link thread's; none when the rank could not begin
  std::shared_ptr<Link> link_;
  IoThread io_;
};

}  // namespace

std::string to_text(const RankStart& start) {
  std::ostringstream text;
  text << start.link_fd << ' ' << start.group_fd << ' ' << start.parent << ' ' << start.hello.attempt << ' '
       << start.hello.rank << ' ' << start.hello.nonce;
  return text.str();
}

std::optional<RankStart> take_rank_start() {
  const char* value = std::getenv(rank_start_variable);
  if (!value) return std::nullopt;
  RankStart start;
  std::istringstream text{value};
  std::string more;
  if (!(text >> start.link_fd >> start.group_fd >> start.parent >> start.hello.attempt >> start.hello.rank >>
        start.hello.nonce) || text >> more || start.link_fd < 3 || start.group_fd < 3 || start.hello.rank < 0) {
    refuse("its value is not understood");
  }
  unsetenv(rank_start_variable);
  check_descriptors(start);
  return start;
}

std::string program_identity() {
  struct stat status{};
  if (stat("/proc/self/exe", &status) != 0) return "unknown";
  std::ostringstream text;
  text << std::hex << status.st_dev << '-' << status.st_ino << '-' << status.st_size << '-' << status.st_mtim.tv_sec
       << '.' << status.st_mtim.tv_nsec;
  return text.str();
}

void run_rank_process(const RankStart& start, const TrainFunctions& functions) {
  settle_in(start);
  record_crashes();
  // The process ends inside; nothing here is ever destroyed.
  (new RankHost{start, functions})->run();
}

}  // namespace troupe::detail

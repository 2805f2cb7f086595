#include "process_pool.hpp"

#include "descriptor_socket.hpp"
#include "local_rank_observer.hpp"
#include "rank_process.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/post.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <random>

namespace troupe::detail {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr auto drain_time = 500ms;  // for the link and the output of a process that has ended
constexpr auto exit_time = 2s;      // for a process whose link has closed
constexpr int leave_ms = 300;       // for a waiting process at the pool's end
constexpr int spare = -1;           // in place of a rank

std::uint64_t draw_nonce() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

std::vector<std::string> child_environment(const PoolOrder& order) {
  std::map<std::string, std::string> values;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    if (const auto sign = text.find('='); sign != std::string::npos) values[text.substr(0, sign)] = text.substr(sign + 1);
  }
  // As torchrun does: without it every rank starts as many threads as the host has cores.
  values.emplace("OMP_NUM_THREADS", std::to_string(order.cpus_per_rank));
  for (const auto& [name, value] : order.environment) values[name] = value;
  values.erase(rank_start_variable);
  std::vector<std::string> result;
  for (const auto& [name, value] : values) result.push_back(name + "=" + value);
  return result;
}

}  // namespace

/// For places: counts processes that have opened, and those that never will. On the pool's thread, but for its making.
class ProcessPool::Search {
 public:
  Search(int wanted, int found, std::function<void(int, const std::string&)> done) : left_(wanted - found), found_(found), done_(std::move(done)) {}
  void opened() { ++found_, one_less(); }
  void failed(const std::string& why) {
    if (why_.empty()) why_ = why;
    one_less();
  }

 private:
  void one_less() {
    if (--left_ == 0) done_(found_, why_);
  }
  int left_, found_;
  std::function<void(int, const std::string&)> done_;
  std::string why_;
};

/// Everything but `give_seat`, `send`, `finish` and `kill` happens on the pool's thread.
class ProcessPool::Process final : public RankProcess, public std::enable_shared_from_this<Process> {
 public:
  Process(ProcessPool& pool, int number, int rank, Handlers handlers)
      : last_rank(rank), pool_(pool), io_(pool.machinery_->thread.io()), number_(number), handlers_(std::move(handlers)),
        patience_(io_) {}

  int last_rank;            // guarded by the pool's mutex; `spare`: any rank's
  bool is_waiting = false;  // likewise: between attempts
  std::atomic<bool> is_open{false};

  void start() {
    try {
      if (killed_) throw Failure{Errc::Aborted, "ended before its process was started"};
      auto [ours, theirs] = make_socket_pair();
      auto [our_seats, their_seats] = make_descriptor_sockets();
      RankStart start{child_link_fd, child_seat_fd, getpid(), {pool_.identity_, number_, draw_nonce()}};
      auto order = pool_.order_;
      order.environment.push_back(std::string(rank_start_variable) + "=" + to_text(start));
      order.link_fd = theirs.get();
      order.seat_fd = their_seats.get();
      order.box_fd = observer_->fd();
      child_ = start_child(order);
      observer_->began(child_.pid);
      is_running_ = true;
      watch(std::move(ours), std::move(our_seats), std::move(start.hello));
    } catch (const Failure& failure) {
      cannot_start({failure.code(), failure.what()});
    } catch (const std::exception& error) {
      cannot_start({ran_out_of_memory(error) ? Errc::OutOfMemory : Errc::StartFailed, std::string("cannot start a rank's process: ") + error.what()});
    }
  }

  /// From here on it is rank `rank`'s: what has happened since is told too.
  void attach(int rank, Handlers handlers) {
    asio::post(io_, [self = shared_from_this(), rank, handlers = std::move(handlers)]() mutable {
      if (self->is_finished_) return handlers.ended(self->ended_);
      self->handlers_ = std::move(handlers);
      if (rank != spare && self->output_) self->output_->begin(rank);
    });
  }

  void give_seat(std::shared_ptr<SharedGroup> group, Attempt attempt) {
    const std::lock_guard lock{mutex_};
    if (link_) return pass_seat(*group, attempt);
    early_seat_ = std::move(group);
    early_attempt_ = attempt;
  }

  Outcome send(const LinkMessage& message) override {
    const std::lock_guard lock{mutex_};
    if (link_) return link_->send(message);
    early_.push_back(message);
    return {};
  }

  void read_output(std::function<void(std::vector<std::string>)> done) override {
    asio::post(io_, [self = shared_from_this(), done = std::move(done)]() mutable {
      if (!self->output_) return done({});
      self->pool_.machinery_->output.drain(self->output_, [output = self->output_, done = std::move(done)] { done(output->lines()); });
    });
  }

  void finish() override {
    const std::lock_guard lock{mutex_};
    if (link_) link_->finish();
  }

  void kill() noexcept override {
    killed_ = true;
    asio::post(io_, [self = shared_from_this()] { self->kill_now(); });
  }

  std::shared_ptr<RankObserver> observer() override { return observer_; }

  /// When the pool ends: nothing is told any more. The first call lets a waiting process go, the second one ends it.
  void let_go() {
    const std::lock_guard lock{mutex_};
    link_.reset();
  }
  void end_at_once(bool may_leave) {
    if (std::exchange(is_running_, false)) {
      pollfd gone{child_.process.get(), POLLIN, 0};
      if (!may_leave || poll(&gone, 1, leave_ms) != 1) kill_child(child_);
      observer_->ending();
      (void)reap(child_);
    }
    forget_process();
  }

 private:
  void forget_process() {
    if (process_) process_->release();  // `child_` owns the descriptor
    process_.reset();
  }

  void watch(Fd socket, Fd seats, Hello hello) {
    const int rank = [this] {
      const std::lock_guard lock{pool_.mutex_};
      return last_rank;
    }();
    output_ = pool_.machinery_->output.watch(rank, std::move(child_.output), std::move(child_.error),
                                             [weak = weak_from_this(), &io = io_] {
                                               asio::post(io, [weak] {
                                                 if (const auto self = weak.lock()) self->output_ended();
                                               });
                                             });
    process_.emplace(io_, child_.process.get());
    wait_for_exit();
    LinkLimits limits;
    limits.hello_timeout = pool_.start_timeout_;
    Link::Handlers handlers;
    handlers.opened = [self = shared_from_this()] {
      self->is_open = true;
      if (const auto told = self->handlers_.opened) told();
    };
    handlers.arrived = [self = shared_from_this()](LinkMessage message) { self->handlers_.arrived(std::move(message)); };
    handlers.closed = [self = shared_from_this()](const Outcome& outcome) { self->link_closed(outcome); };
    const std::lock_guard lock{mutex_};
    seats_ = std::move(seats);
    link_ = Link::open(io_, socket.release(), Link::Side::Group, std::move(hello), limits, std::move(handlers));
    if (early_seat_) pass_seat(*early_seat_, early_attempt_);
    early_seat_.reset();
    for (const auto& message : early_) {
      if (const auto sent = link_->send(message); !sent.ok()) unsent_ = sent;
    }
    early_.clear();
    if (!unsent_.ok()) link_->close();
  }

  // Asio may wake it for an event of a descriptor before, now closed: reaping a process that runs would hold up every link.
  void wait_for_exit() {
    process_->async_wait(asio::posix::stream_descriptor::wait_read, [self = shared_from_this()](const auto& error) {
      if (error) return;
      if (has_ended(self->child_)) return self->exited();
      self->wait_for_exit();
    });
  }

  // Under the lock. A process that is gone is news of its own.
  void pass_seat(const SharedGroup& group, Attempt attempt) { (void)send_descriptor(seats_.get(), group.fd(), attempt); }

  void cannot_start(Outcome why) {
    ended_.start = std::move(why);
    end_at_once(false);
    finish_story();
  }

  void kill_now() noexcept {
    if (is_running_) kill_child(child_);
  }

  void exited() {
    if (!std::exchange(is_running_, false)) return;
    observer_->ending();
    ended_.status = reap(child_);
    has_exited_ = true;
    wait_at_most(drain_time);
    finish_when_complete();
  }

  void link_closed(const Outcome& outcome) {
    ended_.link = unsent_.ok() ? outcome : unsent_;
    is_closed_ = true;
    // A healthy process closes its link as it ends; one that broke the protocol has no time left.
    if (!ended_.link.ok()) kill_now();
    if (!has_exited_) wait_at_most(exit_time);
    finish_when_complete();
  }

  void output_ended() {
    is_read_ = true;
    finish_when_complete();
  }

  void wait_at_most(std::chrono::milliseconds limit) {
    patience_.expires_after(limit);
    patience_.async_wait([self = shared_from_this()](const auto& error) {
      if (error) return;
      if (self->has_exited_) return self->finish_story();
      self->kill_now();  // `exited` follows
    });
  }

  void finish_when_complete() {
    if (has_exited_ && is_closed_ && is_read_) finish_story();
  }

  void finish_story() {
    if (std::exchange(is_finished_, true)) return;
    patience_.cancel();
    if (link_) link_->close();
    forget_process();
    child_ = {};
    if (output_) ended_.last_lines = output_->lines();
    if (const auto handlers = std::exchange(handlers_, {}); handlers.ended) handlers.ended(ended_);
  }

  ProcessPool& pool_;
  asio::io_context& io_;
  const int number_;
  Handlers handlers_;
  asio::steady_timer patience_;
  const std::shared_ptr<LocalRankObserver> observer_ = std::make_shared<LocalRankObserver>();
  Child child_;
  std::optional<asio::posix::stream_descriptor> process_;
  std::shared_ptr<RankOutput> output_;
  ProcessEnded ended_;
  Outcome unsent_;
  bool is_running_ = false;  // started and not reaped
  bool has_exited_ = false, is_closed_ = false, is_read_ = false, is_finished_ = false;
  std::atomic<bool> killed_{false};
  std::mutex mutex_;
  std::shared_ptr<Link> link_;
  Fd seats_;
  // Before the process was started.
  std::vector<LinkMessage> early_;
  std::shared_ptr<SharedGroup> early_seat_;
  Attempt early_attempt_ = 0;
};

ProcessPool::ProcessPool(PoolOrder order) : start_timeout_(order.start_timeout), sink_(std::move(order.output)) {
  order_.program = order.program;
  order_.arguments = order.arguments;
  order_.environment = child_environment(order);
  identity_ = program_identity(order.program);
}

ProcessPool::~ProcessPool() {
  if (!machinery_) return;
  machinery_->thread.stop();
  for (const auto& process : waiting_) process->let_go();
  for (const auto& weak : processes_) {
    const auto process = weak.lock();
    if (!process) continue;
    process->let_go();
    process->end_at_once(process->is_waiting);
  }
  waiting_.clear();  // before the thread that they live on
}

void ProcessPool::begin_attempt(std::span<const int> ranks) {
  const std::lock_guard lock{mutex_};
  const int new_ones = std::max(0, static_cast<int>(ranks.size()) - static_cast<int>(waiting_.size()));
  // Beside each child's: the shared memory, two event loops, and what starting one child takes for a moment.
  constexpr int others = 20;
  require_descriptors(new_ones * descriptors_per_child + others, std::to_string(ranks.size()) + " ranks as processes");
  if (!machinery_) machinery_ = std::make_unique<Machinery>(sink_);
  for (const auto& process : waiting_) {
    if (std::ranges::find(ranks, process->last_rank) == ranks.end()) process->last_rank = spare;
  }
}

void ProcessPool::give_seat(const std::shared_ptr<RankProcess>& process, std::shared_ptr<SharedGroup> group, Attempt attempt) {
  std::static_pointer_cast<Process>(process)->give_seat(std::move(group), attempt);
}

// Under the lock.
std::shared_ptr<ProcessPool::Process> ProcessPool::start(int rank, Handlers handlers) {
  auto process = std::make_shared<Process>(*this, started_++, rank, std::move(handlers));
  launch(process);
  return process;
}

// Under the lock.
void ProcessPool::launch(const std::shared_ptr<Process>& process) {
  std::erase_if(processes_, [](const auto& known) { return known.expired(); });
  processes_.push_back(process);
  asio::post(machinery_->thread.io(), [process] { process->start(); });
}

std::shared_ptr<RankProcess> ProcessPool::take(int rank, Handlers handlers) {
  const std::lock_guard lock{mutex_};
  auto best = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& process) { return process->last_rank == rank; });
  if (best == waiting_.end()) {
    best = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& process) { return process->last_rank == spare; });
  }
  if (best == waiting_.end()) return start(rank, std::move(handlers));
  auto process = *best;
  waiting_.erase(best);
  process->last_rank = rank;
  process->is_waiting = false;
  process->attach(rank, std::move(handlers));
  return process;
}

ProcessPool::Handlers ProcessPool::waiting_handlers(const std::weak_ptr<Process>& weak, std::shared_ptr<Search> search) {
  Handlers handlers;
  handlers.arrived = [](const LinkMessage&) {};  // of the attempt that is over
  if (search) handlers.opened = [search] { search->opened(); };
  handlers.ended = [this, weak, search](const ProcessEnded& end) {
    const auto process = weak.lock();
    if (process) forget(process);
    if (!search || (process && process->is_open)) return;
    search->failed(!end.start.ok() ? end.start.text() : !end.link.ok() ? end.link.text() : "a process ended before it could be a rank");
  };
  return handlers;
}

void ProcessPool::forget(const std::shared_ptr<Process>& process) {
  const std::lock_guard lock{mutex_};
  std::erase(waiting_, process);
}

void ProcessPool::give_back(const std::shared_ptr<RankProcess>& used) {
  const auto process = std::static_pointer_cast<Process>(used);
  const std::lock_guard lock{mutex_};
  process->is_waiting = true;
  waiting_.push_back(process);
  process->attach(spare, waiting_handlers(process));
}

void ProcessPool::keep_spares(int count) {
  const std::lock_guard lock{mutex_};
  for (const auto& process : waiting_) count -= process->last_rank == spare ? 1 : 0;
  for (; count > 0; --count) start_spare();
}

// Under the lock.
void ProcessPool::start_spare(std::shared_ptr<Search> search) {
  auto process = std::make_shared<Process>(*this, started_++, spare, Handlers{});
  process->is_waiting = true;
  process->attach(spare, waiting_handlers(process, std::move(search)));  // before it starts: what it shows first counts
  launch(process);
  waiting_.push_back(std::move(process));
}

void ProcessPool::find_places(int count, std::function<void(int, const std::string&)> done) {
  const std::lock_guard lock{mutex_};
  const auto ready = static_cast<int>(std::ranges::count_if(waiting_, [](const auto& process) { return process->is_open.load(); }));
  if (ready >= count) return done(count, {});
  require_descriptors((count - ready) * descriptors_per_child, std::to_string(count) + " more ranks as processes");
  const auto search = std::make_shared<Search>(count, ready, std::move(done));
  for (int started = ready; started < count; ++started) start_spare(search);
}

void ProcessPool::start_anew() {
  const std::lock_guard lock{mutex_};
  for (const auto& process : waiting_) process->kill();
  waiting_.clear();
}

}  // namespace troupe::detail

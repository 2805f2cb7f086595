#include "process_host.hpp"

#include "rank_process.hpp"

#include <unistd.h>

#include <boost/asio/post.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <mutex>
#include <random>

namespace troupe::detail {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr auto drain_time = 500ms;  // for the link and the output of a process that has ended
constexpr auto exit_time = 2s;      // for a process whose link has closed

std::uint64_t draw_nonce() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

std::vector<std::string> child_environment(const StartGroup& group) {
  std::map<std::string, std::string> values;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    if (const auto sign = text.find('='); sign != std::string::npos) values[text.substr(0, sign)] = text.substr(sign + 1);
  }
  // As torchrun does: without it every rank starts as many threads as the host has cores.
  values.emplace("OMP_NUM_THREADS", std::to_string(group.scaling.cpus_per_worker));
  for (const auto& [name, value] : group.run.worker_env) values[name] = value;
  values.erase(rank_start_variable);
  std::vector<std::string> result;
  for (const auto& [name, value] : values) result.push_back(name + "=" + value);
  return result;
}

}  // namespace

/// Everything but `send` and `kill` happens on the host's thread.
class ProcessHost::Rank final : public HostedRank, public std::enable_shared_from_this<Rank> {
 public:
  Rank(ProcessHost& host, int rank, Handlers handlers)
      : host_(host), io_(host.thread_.io()), rank_(rank), handlers_(std::move(handlers)), patience_(io_) {}

  void start() {
    try {
      if (killed_) throw Failure{Errc::Aborted, "ended before its process was started"};
      auto [ours, theirs] = make_socket_pair();
      RankStart start{child_link_fd, child_group_fd, getpid(), {host_.identity_, host_.group_.attempt, rank_, draw_nonce()}};
      auto order = host_.order_;
      order.environment.push_back(std::string(rank_start_variable) + "=" + to_text(start));
      order.link_fd = theirs.get();
      order.group_fd = host_.memory_->fd();
      order.box_fd = observer_->fd();
      child_ = start_child(order);
      observer_->began(child_.pid);
      is_running_ = true;
      watch(std::move(ours), std::move(start.hello));
    } catch (const Failure& failure) {
      ended_.start = {failure.code(), failure.what()};
      finish();
    }
  }

  Outcome send(const LinkMessage& message) override {
    const std::lock_guard lock{mutex_};
    if (link_) return link_->send(message);
    early_.push_back(message);
    return {};
  }

  void kill() noexcept override {
    killed_ = true;
    asio::post(io_, [self = shared_from_this()] { self->kill_now(); });
  }

  std::shared_ptr<RankObserver> observer() override { return observer_; }

  /// When the host ends: nothing is told any more.
  void end_at_once() {
    if (std::exchange(is_running_, false)) {
      kill_child(child_);
      observer_->ending();
      (void)reap(child_);
    }
    forget_process();
    const std::lock_guard lock{mutex_};
    link_.reset();
  }

 private:
  void forget_process() {
    if (process_) process_->release();  // `child_` owns the descriptor
    process_.reset();
  }

  void watch(Fd socket, Hello hello) {
    output_ = host_.output_.watch(rank_, std::move(child_.output), std::move(child_.error),
                                  [weak = weak_from_this(), &io = io_] {
                                    asio::post(io, [weak] {
                                      if (const auto self = weak.lock()) self->output_ended();
                                    });
                                  });
    process_.emplace(io_, child_.process.get());
    process_->async_wait(asio::posix::stream_descriptor::wait_read, [self = shared_from_this()](const auto& error) {
      if (!error) self->exited();
    });
    LinkLimits limits;
    limits.hello_timeout = host_.group_.run.start_timeout;
    Link::Handlers handlers;
    handlers.arrived = [self = shared_from_this()](LinkMessage message) { self->handlers_.arrived(std::move(message)); };
    handlers.closed = [self = shared_from_this()](const Outcome& outcome) { self->link_closed(outcome); };
    const std::lock_guard lock{mutex_};
    link_ = Link::open(io_, socket.release(), Link::Side::Group, std::move(hello), limits, std::move(handlers));
    for (const auto& message : early_) {
      if (const auto sent = link_->send(message); !sent.ok()) unsent_ = sent;
    }
    early_.clear();
    if (!unsent_.ok()) link_->close();
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
    // A healthy rank closes its link as it ends; one that broke the protocol has no time left.
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
      if (self->has_exited_) return self->finish();
      self->kill_now();  // `exited` follows
    });
  }

  void finish_when_complete() {
    if (has_exited_ && is_closed_ && is_read_) finish();
  }

  void finish() {
    if (std::exchange(is_finished_, true)) return;
    patience_.cancel();
    if (link_) link_->close();
    forget_process();
    child_ = {};
    if (output_) ended_.last_lines = output_->get();
    std::exchange(handlers_, {}).ended(std::move(ended_));
  }

  ProcessHost& host_;
  asio::io_context& io_;
  const int rank_;
  Handlers handlers_;
  asio::steady_timer patience_;
  const std::shared_ptr<RankObserver> observer_ = std::make_shared<RankObserver>();
  Child child_;
  std::optional<asio::posix::stream_descriptor> process_;
  std::shared_ptr<LastLines> output_;
  ProcessEnded ended_;
  Outcome unsent_;
  bool is_running_ = false;  // started and not reaped
  bool has_exited_ = false, is_closed_ = false, is_read_ = false, is_finished_ = false;
  std::atomic<bool> killed_{false};
  std::mutex mutex_;
  std::shared_ptr<Link> link_;
  std::vector<LinkMessage> early_;  // before the process was started
};

ProcessHost::ProcessHost(const Session& session, const StartGroup& group) : group_(group) {
  const auto count = group.scaling.num_workers;
  // Beside each child's: the shared memory, two event loops, and what starting one child takes for a moment.
  constexpr int others = 20;
  require_descriptors(count * descriptors_per_child + others, std::to_string(count) + " ranks as processes");
  order_.program = "/proc/self/exe";  // this very program, also when its file was replaced since
  if (access(order_.program.c_str(), X_OK) != 0) order_.program = session.program();
  order_.arguments = session.arguments();
  order_.environment = child_environment(group);
  identity_ = program_identity();
  memory_ = SharedGroup::create(count, group.run.collective_timeout);
}

ProcessHost::~ProcessHost() {
  thread_.stop();
  for (const auto& weak : ranks_) {
    if (const auto rank = weak.lock()) rank->end_at_once();
  }
}

std::shared_ptr<HostedRank> ProcessHost::start(int rank, Handlers handlers) {
  auto hosted = std::make_shared<Rank>(*this, rank, std::move(handlers));
  {
    const std::lock_guard lock{mutex_};
    ranks_.push_back(hosted);
  }
  asio::post(thread_.io(), [hosted] { hosted->start(); });
  return hosted;
}

}  // namespace troupe::detail

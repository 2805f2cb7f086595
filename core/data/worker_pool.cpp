#include "worker_pool.hpp"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <system_error>
#include <thread>
#include <troupe/errors.hpp>

#include "batch_bytes.hpp"

extern char** environ;

namespace troupe {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kStartTimeout{120};
constexpr std::chrono::seconds kEndTimeout{2};

std::vector<std::string> own_arguments() {
  std::ifstream file{"/proc/self/cmdline", std::ios::binary};
  std::vector<std::string> arguments;
  for (std::string one; std::getline(file, one, '\0');) arguments.push_back(one);
  return arguments;
}

/// This program again, with `socket` as its descriptor 3 and nothing above.
pid_t spawn(int socket) {
  auto arguments = own_arguments();
  std::vector<char*> argv, envp;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::string variable = std::string{kWorkerVariable} + "=" + std::to_string(kWorkerSocket);
  for (char** entry = environ; *entry; ++entry) envp.push_back(*entry);
  envp.push_back(variable.data());
  envp.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, socket, kWorkerSocket);
  posix_spawn_file_actions_addclosefrom_np(&actions, kWorkerSocket + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, "/proc/self/exe", &actions, &attributes, argv.data(), envp.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error) throw Failure{Errc::StartFailed, "DataLoader: a worker process could not be started: " + std::generic_category().message(error)};
  return pid;
}

}  // namespace

SegmentShelf::Held SegmentShelf::take() {
  const std::scoped_lock lock{mutex_};
  if (free_.empty()) return {next_id_++, std::make_unique<SharedSegment>(), false};
  auto held = std::move(free_.back());
  free_.pop_back();
  return held;
}

void SegmentShelf::give_back(Held held) {
  const std::scoped_lock lock{mutex_};
  if (free_.size() < most_) free_.push_back(std::move(held));
  else if (held.sent) dropped_.push_back(held.id);
}

std::vector<std::uint64_t> SegmentShelf::dropped() {
  const std::scoped_lock lock{mutex_};
  return std::exchange(dropped_, {});
}

/// One epoch of a pool.
class WorkerPool::Pipe final : public BatchPipe {
 public:
  Pipe(std::shared_ptr<WorkerPool> pool, std::unique_ptr<JobSource> source, std::int64_t first, std::vector<std::int64_t> ahead)
      : pool_(std::move(pool)), source_(std::move(source)), number_(first), ahead_(std::move(ahead)) {}

  [[nodiscard]] std::optional<LoadedBatch> next() override {
    auto& p = *pool_;
    if (p.broken_) throw Failure{Errc::Aborted, "DataLoader: the data workers of this epoch have ended; begin it again"};
    order_more();
    const auto limit = p.options_.timeout.count() ? std::optional{Clock::now() + p.options_.timeout} : std::nullopt;
    for (;;) {
      if (!p.results_.empty() && (!p.options_.in_order || p.results_.begin()->first == handed_)) {
        auto result = std::move(p.results_.extract(p.results_.begin()).mapped());
        ++handed_;
        if (result.error) {
          ended_ = true;
          std::rethrow_exception(result.error);
        }
        if (result.batch) {
          order_more();
          return std::move(result.batch);
        }
        ended_ = true;  // of a stream
        continue;
      }
      if (handed_ >= ordered_) return std::nullopt;
      if (!p.receive(limit)) timed_out();
    }
  }

 private:
  void order_more() {
    auto& p = *pool_;
    const auto count = p.workers_.size();
    for (std::size_t tried = 0; !ended_ && tried < count;) {
      if (!source_) {
        while (std::find(ahead_.begin(), ahead_.end(), number_) != ahead_.end()) ++number_;
        turn_ = static_cast<std::size_t>(number_) % count;
      }
      auto& worker = p.workers_[turn_];
      if (std::ssize(worker.outstanding) >= p.options_.prefetch_factor || window_full()) {
        if (!source_) return;  // its turn it is, for the order of a stream
        turn_ = (turn_ + 1) % count;
        ++tried;
        continue;
      }
      BatchMeta meta;
      if (source_) {
        auto job = source_->next();
        if (!job) {
          ended_ = true;
          return;
        }
        meta = std::move(job->meta);
      }
      p.order_batch(worker, source_ ? OrderKind::Load : OrderKind::Read, ordered_++, std::move(meta));
      ++number_;
      turn_ = (turn_ + 1) % count;
      tried = 0;
    }
  }
  /// A slow worker must not let the others run on for ever.
  [[nodiscard]] bool window_full() const {
    return ordered_ - handed_ >= static_cast<std::int64_t>(pool_->workers_.size()) * pool_->options_.prefetch_factor;
  }

  [[noreturn]] void timed_out() {
    auto& p = *pool_;
    p.broken_ = true;  // the next epoch has others
    std::string who;
    for (std::size_t w = 0; w < p.workers_.size(); ++w) {
      const auto& outstanding = p.workers_[w].outstanding;
      if (!outstanding.empty() && (!p.options_.in_order || outstanding.front().place <= handed_)) who += (who.empty() ? "" : ", ") + p.name(w);
    }
    throw Failure{Errc::DeadlinePassed, "DataLoader: no batch within " + std::to_string(p.options_.timeout.count()) + " ms (timeout) from " + who};
  }

  std::shared_ptr<WorkerPool> pool_;
  std::unique_ptr<JobSource> source_;  // null: a stream
  std::int64_t number_;                // of a stream's next batch: says whose turn it is
  std::vector<std::int64_t> ahead_;
  std::int64_t ordered_ = 0, handed_ = 0;
  std::size_t turn_ = 0;
  bool ended_ = false;  // nothing more is ordered
};

WorkerPool::WorkerPool(Options options) : options_(std::move(options)) {
  if (std::getenv(kWorkerVariable)) {
    throw Failure{Errc::StartFailed, "DataLoader: this process is a data worker itself; call troupe::serve_data_workers first thing in main"};
  }
  std::memset(page_.at_least(sizeof(std::uint64_t)).data(), 0, sizeof(std::uint64_t));
  workers_.resize(static_cast<std::size_t>(options_.num_workers));
  try {
    for (std::size_t w = 0; w < workers_.size(); ++w) start(w);
    wait_until_ready();
  } catch (...) {
    end_all();
    throw;
  }
}

WorkerPool::~WorkerPool() { end_all(); }

void WorkerPool::start(std::size_t number) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    throw Failure{Errc::StartFailed, "DataLoader: " + name(number) + " has no socket: " + std::generic_category().message(errno)};
  auto& worker = workers_[number];
  worker.socket = OwnFd{ends[0]};
  const OwnFd theirs{ends[1]};
  worker.shelf = std::make_shared<SegmentShelf>(static_cast<std::size_t>(options_.prefetch_factor) + 2);
  worker.pid = spawn(theirs.get());
  const nlohmann::json init{{"factory", options_.processes.factory}, {"config", options_.processes.config.json()}, {"batching", options_.batching}};
  send_body(worker, OrderKind::Init, init.dump());
  send(worker, {}, page_.fd());
}

void WorkerPool::wait_until_ready() {
  const auto limit = Clock::now() + kStartTimeout;
  for (std::size_t w = 0; w < workers_.size(); ++w) {
    pollfd waiting{workers_[w].socket.get(), POLLIN, 0};
    int ready = 0;
    do {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(limit - Clock::now()).count();
      ready = ::poll(&waiting, 1, static_cast<int>(std::max<std::int64_t>(left, 0)));
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) {
      throw Failure{Errc::StartFailed, "DataLoader: " + name(w) + " was not ready within " + std::to_string(kStartTimeout.count()) +
                                           " s; does main call troupe::serve_data_workers first, and does its factory return?"};
    }
    const auto packet = receive_packet(workers_[w].socket.get());
    if (!packet || packet->bytes.size() < sizeof(Reply)) lost(w, true);
    Reply reply;
    std::memcpy(&reply, packet->bytes.data(), sizeof reply);
    if (reply.kind == ReplyKind::Error)
      throw Failure{static_cast<Errc>(reply.code), name(w) + ": " + std::string(packet->bytes.begin() + sizeof reply, packet->bytes.end())};
    const auto& own = options_.dataset_size;
    if (own && reply.bytes > 0 && *own + 1 != reply.bytes) {
      throw Failure{Errc::InvalidArgument, "DataLoader: the data set of " + name(w) + " has " + std::to_string(reply.bytes - 1) +
                                               " samples, the loader's own " + std::to_string(*own) + "; they must be the same"};
    }
    if (options_.iterable != (reply.code == 1)) {
      throw Failure{Errc::InvalidArgument, "DataLoader: " + name(w) + " has " + (options_.iterable ? "a data set with indices" : "an iterable data set") +
                                               ", unlike the loader"};
    }
  }
}

void WorkerPool::send(Worker& worker, const Order& order, int fd) {
  auto sent = order;
  sent.has_fd = fd >= 0;
  if (!send_packet(worker.socket.get(), &sent, sizeof sent, fd)) lost(static_cast<std::size_t>(&worker - workers_.data()), generation_ == 0);
}

void WorkerPool::send_body(Worker& worker, OrderKind kind, const std::string& body) {
  SharedSegment segment;  // a body may be longer than a packet
  std::memcpy(segment.at_least(body.size()).data(), body.data(), body.size());
  Order order{.kind = kind, .generation = generation_, .count = body.size()};
  send(worker, order, segment.fd());
}

void WorkerPool::begin_epoch() {
  ++generation_;
  results_.clear();
  std::atomic_ref{*reinterpret_cast<std::uint64_t*>(page_.all().data())}.store(generation_);
}

std::unique_ptr<BatchPipe> WorkerPool::load(std::unique_ptr<JobSource> source) {
  begin_epoch();
  return std::make_unique<Pipe>(shared_from_this(), std::move(source), 0, std::vector<std::int64_t>{});
}

std::unique_ptr<BatchPipe> WorkerPool::read(const StreamOrder& order) {
  begin_epoch();
  for (std::size_t w = 0; w < workers_.size(); ++w) {
    auto mine = order;
    mine.share.worker = static_cast<int>(w);
    mine.share.num_workers = options_.num_workers;
    send_body(workers_[w], OrderKind::Stream, to_body(mine));
  }
  return std::make_unique<Pipe>(shared_from_this(), nullptr, order.start.num_batches, order.start.ahead);
}

void WorkerPool::order_batch(Worker& worker, OrderKind kind, std::int64_t place, BatchMeta meta) {
  for (const auto id : worker.shelf->dropped()) send(worker, {.kind = OrderKind::Forget, .segment = id});
  auto held = worker.shelf->take();
  Order order{.kind = kind, .generation = generation_, .place = static_cast<std::uint64_t>(place), .segment = held.id, .count = meta.indices.size()};
  const auto bytes = meta.indices.size() * sizeof(std::int64_t);
  const auto memory = held.segment->at_least(std::max<std::size_t>(bytes, 1));
  if (bytes > 0) std::memcpy(memory.data(), meta.indices.data(), bytes);
  send(worker, order, held.sent ? -1 : held.segment->fd());
  held.sent = true;
  worker.outstanding.push_back({generation_, place, std::move(held), std::move(meta)});
}

bool WorkerPool::receive(std::optional<Clock::time_point> limit) {
  std::vector<pollfd> waiting;
  for (const auto& worker : workers_) waiting.push_back({worker.socket.get(), POLLIN, 0});
  int timeout = -1;
  if (limit) timeout = static_cast<int>(std::max<std::int64_t>(0, std::chrono::ceil<std::chrono::milliseconds>(*limit - Clock::now()).count()));
  const int ready = ::poll(waiting.data(), waiting.size(), timeout);
  if (ready < 0 && errno == EINTR) return true;
  if (ready <= 0) return false;
  for (std::size_t w = 0; w < workers_.size(); ++w) {
    if (!waiting[w].revents) continue;
    const auto packet = receive_packet(workers_[w].socket.get());
    if (!packet) lost(w, false);
    take_reply(workers_[w], *packet);
  }
  return true;
}

void WorkerPool::take_reply(Worker& worker, const Packet& packet) {
  Reply reply;
  if (packet.bytes.size() < sizeof reply || worker.outstanding.empty()) {
    broken_ = true;
    throw Failure{Errc::ProtocolError, "DataLoader: " + name(static_cast<std::size_t>(&worker - workers_.data())) + " said what was not asked"};
  }
  std::memcpy(&reply, packet.bytes.data(), sizeof reply);
  auto asked = std::move(worker.outstanding.front());
  worker.outstanding.pop_front();
  // Given back when the last tensor of the batch is gone, or else at once.
  const auto lease = std::shared_ptr<SegmentShelf::Held>(new SegmentShelf::Held(std::move(asked.held)), [shelf = worker.shelf](SegmentShelf::Held* held) {
    shelf->give_back(std::move(*held));
    delete held;
  });
  if (asked.generation != generation_ || reply.kind == ReplyKind::Skipped) return;
  auto& result = results_[asked.place];
  try {
    if (reply.kind == ReplyKind::Error)
      throw Failure{static_cast<Errc>(reply.code), std::string(packet.bytes.begin() + sizeof reply, packet.bytes.end())};
    if (reply.kind == ReplyKind::End) return;
    const auto memory = lease->segment->all();
    if (reply.kind != ReplyKind::Loaded || reply.bytes > memory.size()) throw Failure{Errc::ProtocolError, "DataLoader: a worker's batch does not fit its segment"};
    auto batch = unpack(lease, memory.first(static_cast<std::size_t>(reply.bytes)));
    if (!options_.iterable) batch.meta = std::move(asked.meta);
    result.batch = std::move(batch);
  } catch (...) {
    result.error = std::current_exception();
  }
}

std::string WorkerPool::name(std::size_t number) const {
  return "data worker " + std::to_string(number) + " of " + std::to_string(options_.num_workers) + " (process " + std::to_string(workers_[number].pid) +
         ", factory '" + options_.processes.factory + "')";
}

void WorkerPool::lost(std::size_t number, bool before_ready) {
  broken_ = true;
  auto& worker = workers_[number];
  const auto who = name(number);
  ::kill(worker.pid, SIGKILL);  // its socket is closed: it has ended, or is about to
  int status = 0;
  while (::waitpid(worker.pid, &status, 0) < 0 && errno == EINTR) {
  }
  worker.pid = -1;
  const bool killed = WIFSIGNALED(status);
  auto text = "DataLoader: " + who + (killed ? " was killed by signal " + std::to_string(WTERMSIG(status)) + " (" + sigdescr_np(WTERMSIG(status)) + ")"
                                             : " ended with exit code " + std::to_string(WEXITSTATUS(status)));
  if (before_ready) throw Failure{Errc::StartFailed, text + " before it was ready; main must call troupe::serve_data_workers first"};
  if (const auto& work = worker.outstanding; !work.empty()) {
    const auto& meta = work.front().meta;
    text += " while it was to load ";
    text += meta.indices.empty() ? "from the stream" : "batch " + std::to_string(meta.number) + ", which begins with sample " + std::to_string(meta.indices.front());
  }
  end_all();
  throw Failure{killed ? Errc::RankKilled : Errc::RankExited, text};
}

void WorkerPool::end_all() noexcept {
  for (auto& worker : workers_) worker.socket = OwnFd{};  // what they wait for, or watch
  const auto limit = Clock::now() + kEndTimeout;
  for (auto& worker : workers_) {
    if (worker.pid < 0) continue;
    for (;;) {
      const auto ended = ::waitpid(worker.pid, nullptr, WNOHANG);
      if (ended == worker.pid || (ended < 0 && errno != EINTR)) break;
      if (Clock::now() > limit) ::kill(worker.pid, SIGKILL);
      std::this_thread::sleep_for(std::chrono::microseconds{500});
    }
    worker.pid = -1;
  }
}

}  // namespace troupe

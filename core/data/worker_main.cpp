#include <ATen/Parallel.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <thread>
#include <troupe/data/data_workers.hpp>
#include <troupe/errors.hpp>

#include "batch_bytes.hpp"
#include "batch_loading.hpp"
#include "worker_wire.hpp"

namespace troupe {
namespace {

/// Ends the process soon after the loader's side of the socket is closed, whatever the process is doing.
void watch(int socket) {
  std::thread{[socket] {
    pollfd waiting{socket, POLLRDHUP, 0};
    while (::poll(&waiting, 1, -1) < 0 || !(waiting.revents & (POLLRDHUP | POLLHUP | POLLERR))) {
    }
    std::this_thread::sleep_for(std::chrono::seconds{1});  // an idle worker ends by itself
    ::_exit(0);
  }}.detach();
}

class Server {
 public:
  Server(int socket, const WorkerDataFactories& factories) : socket_(socket), factories_(factories) {}

  void run() {
    while (auto packet = receive_packet(socket_)) {
      Order order;
      if (packet->bytes.size() != sizeof order) return;
      std::memcpy(&order, packet->bytes.data(), sizeof order);
      Reply reply{.generation = order.generation, .place = order.place};
      std::string text;
      try {
        if (!serve(order, std::move(packet->fd), reply)) continue;
      } catch (const Failure& failure) {
        reply.kind = ReplyKind::Error;
        reply.code = static_cast<std::uint32_t>(failure.code());
        text = failure.what();
      } catch (const std::exception& error) {
        reply.kind = ReplyKind::Error;
        reply.code = static_cast<std::uint32_t>(Errc::DataMalformed);
        text = error.what();
      }
      text.resize(std::min(text.size(), kMostText));
      std::string bytes(reinterpret_cast<const char*>(&reply), sizeof reply);
      bytes += text;
      if (!send_packet(socket_, bytes.data(), bytes.size())) return;
    }
  }

 private:
  /// Whether it is answered.
  bool serve(const Order& order, OwnFd fd, Reply& reply) {
    switch (order.kind) {
      case OrderKind::Init:
        if (order.count == 0) {
          page_ = std::make_unique<SharedSegment>(std::move(fd));
          return false;
        }
        init(body(order, std::move(fd)), reply);
        return true;
      case OrderKind::Stream:
        begin(stream_order(body(order, std::move(fd))));
        return false;
      case OrderKind::Forget:
        segments_.erase(order.segment);
        return false;
      case OrderKind::Load:
      case OrderKind::Read: break;
    }
    if (fd.get() >= 0) segments_[order.segment] = std::make_unique<SharedSegment>(std::move(fd));
    auto& segment = *segments_.at(order.segment);
    if (order.generation != counting_generation()) {
      reply.kind = ReplyKind::Skipped;
      return true;
    }
    make(order, segment, reply);
    return true;
  }

  [[nodiscard]] std::uint64_t counting_generation() {
    return page_ ? std::atomic_ref{*reinterpret_cast<std::uint64_t*>(page_->all().data())}.load() : 0;
  }

  static std::string body(const Order& order, OwnFd fd) {
    SharedSegment segment{std::move(fd)};
    const auto bytes = segment.all();
    return {reinterpret_cast<const char*>(bytes.data()), std::min<std::size_t>(bytes.size(), order.count)};
  }

  void init(const std::string& body, Reply& reply) {
    const auto json = nlohmann::ordered_json::parse(body);
    const std::string name = json.at("factory");
    const auto found = factories_.find(name);
    if (found == factories_.end()) {
      std::string names;
      for (const auto& [known, factory] : factories_) names += (names.empty() ? "" : ", ") + known;
      throw Failure{Errc::NotFound, "serve_data_workers was given no factory '" + name + "'; there are: " + (names.empty() ? "none" : names)};
    }
    data_ = found->second(Config(json.at("config")));
    if (!data_.map == !data_.iterable) throw Failure{Errc::InvalidArgument, "factory '" + name + "' must make a map data set or an iterable one"};
    batching_ = json.at("batching");
    make_ = batch_maker(data_.map, data_.collate ? data_.collate : Collate{default_collate}, batching_);
    const auto size = data_.map ? std::optional{static_cast<std::int64_t>(data_.map->size())} : data_.iterable->size();
    reply.kind = ReplyKind::Ready;
    reply.code = data_.iterable ? 1 : 0;
    reply.bytes = size ? static_cast<std::uint64_t>(*size) + 1 : 0;
  }

  void begin(const StreamOrder& order) {
    reader_.reset();
    begin_error_ = nullptr;
    try {
      auto dataset = data_.iterable;
      if (order.own_world_size > 0) dataset = dataset->shard(order.own_rank, order.own_world_size);
      if (!dataset) throw Failure{Errc::InvalidArgument, "DataLoader: the data set of a worker does not divide itself, unlike the loader's"};
      reader_ = std::make_unique<StreamReader>(dataset, order.start, order.share);
    } catch (...) {
      begin_error_ = std::current_exception();
    }
  }

  void make(const Order& order, SharedSegment& segment, Reply& reply) {
    if (begin_error_) std::rethrow_exception(begin_error_);
    std::optional<BatchJob> job;
    if (order.kind == OrderKind::Load) {
      job.emplace();
      job->meta.indices.resize(order.count);
      std::memcpy(job->meta.indices.data(), segment.at_least(order.count * sizeof(std::int64_t)).data(), order.count * sizeof(std::int64_t));
    } else if (reader_) {
      job = reader_->next();
    }
    if (!job) {
      reply.kind = ReplyKind::End;
      return;
    }
    const PackedBatch packed{make_(std::move(*job))};
    packed.write(segment.at_least(packed.size()));
    reply.kind = ReplyKind::Loaded;
    reply.bytes = packed.size();
  }

  int socket_;
  const WorkerDataFactories& factories_;
  WorkerData data_;
  MakeBatch make_;
  bool batching_ = true;
  std::unique_ptr<SharedSegment> page_;
  std::map<std::uint64_t, std::unique_ptr<SharedSegment>> segments_;
  std::unique_ptr<StreamReader> reader_;
  std::exception_ptr begin_error_;
};

}  // namespace

void serve_data_workers(const WorkerDataFactories& factories) {
  const char* variable = std::getenv(kWorkerVariable);
  if (!variable) return;
  const int socket = std::atoi(variable);
  ::fcntl(socket, F_SETFD, FD_CLOEXEC);
  ::unsetenv(kWorkerVariable);      // not for what the data set starts
  ::signal(SIGINT, SIG_IGN);        // of the terminal: the loader decides
  at::set_num_threads(1);
  watch(socket);
  {
    Server server{socket, factories};
    server.run();
  }
  std::cout.flush();
  ::_exit(0);  // without destructors of statics, which have no business here
}

}  // namespace troupe

// What it takes to place and start 8,000 ranks on 1,000 nodes: a real Trainer, WorkerGroup, Head and their messages. Nodes are links in memory that answer
// as agents and ranks do, so that neither TLS nor a process is in the figure.
//
//   nodes_bench [--json FILE] [--nodes N]     a table on stderr and FILE
#include "../actors/cluster/head.hpp"
#include "../actors/frame.hpp"
#include "../actors/process_placer.hpp"
#include "../actors/trainer_state.hpp"
#include "control_figures.hpp"

#include <troupe/caf_types.hpp>
#include <troupe/session.hpp>

#include <boost/asio/post.hpp>
#include <caf/all.hpp>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <mutex>
#include <string>

namespace troupe::bench {
namespace {

using namespace std::chrono_literals;
using detail::Packet;

constexpr int ranks_of_a_node = 8;

/// Both ends of a node's link, and its agent and ranks: they start at once and return when they are told.
class Node final : public detail::SecureLink, public std::enable_shared_from_this<Node> {
 public:
  Node(std::shared_ptr<detail::Head> head, boost::asio::io_context& io, int number) : head_(std::move(head)), io_(io), number_(number) {}

  void join() {
    boost::asio::post(head_->io(), [self = shared_from_this()] {
      self->handlers_ = self->head_->greet({"", ClusterRole::Node, "n"}, self);
      self->handlers_.opened({"", ClusterRole::Head, "head"}, "10.0.0.1");
      detail::JoinNode request;
      request.name = "n-" + std::to_string(self->number_);
      request.address = "10.0." + std::to_string(self->number_ / 250) + "." + std::to_string(self->number_ % 250 + 1);
      request.resources = {.cpus = ranks_of_a_node};
      self->handlers_.arrived(detail::encode(request));
    });
  }
  /// Its ranks' train functions return.
  void let_return() {
    boost::asio::post(io_, [self = shared_from_this()] {
      for (const auto& [process, order] : self->ranks_) self->tell(process, RankDone{order.attempt, order.rank, 0, {}});
    });
  }

  Outcome send(Packet packet) override {
    boost::asio::post(io_, [self = shared_from_this(), packet = std::move(packet)] { self->arrived(detail::decode(packet, true)); });
    return {};
  }
  void finish() override {
    boost::asio::post(head_->io(), [self = shared_from_this()] {
      if (const auto handlers = std::exchange(self->handlers_, {}); handlers.closed) handlers.closed({});
    });
  }
  void close() override { finish(); }
  std::string local_address() const override { return "10.0.0.1"; }

 private:
  struct Order {
    Attempt attempt;
    int rank;
  };

  void arrived(const detail::NodeMessage& message) {
    if (const auto* order = std::get_if<detail::FinishProcess>(&message)) {
      detail::ProcessOver over;
      over.run = order->run;
      over.process = order->process;
      return answer(over);
    }
    const auto* mail = std::get_if<detail::ToRank>(&message);
    if (!mail) return;
    run_ = mail->run;
    const auto content = detail::decode_message(mail->type, mail->bytes);
    if (const auto* start = std::get_if<RunRank>(&content)) {
      ranks_[mail->process] = {start->attempt, start->rank};
      tell(mail->process, SeatOpened{start->attempt, start->rank, start->node_rank, start->local_rank, start->hosts.address + ":" + std::to_string(40'000 + start->local_rank)});
    } else if (const auto* seats = std::get_if<SeatsKnown>(&content)) {
      const auto& order = ranks_.at(mail->process);
      tell(mail->process, RankStarted{order.attempt, order.rank, static_cast<std::int64_t>(seats->endpoints.size())});
    }
  }
  void tell(std::uint64_t process, const LinkMessage& news) {
    answer(detail::FromRank{run_, process, static_cast<std::uint16_t>(news.index()), detail::encode_frame(news, 1 << 20).substr(detail::frame_header_bytes)});
  }
  void answer(const detail::NodeMessage& message) {
    boost::asio::post(head_->io(), [self = shared_from_this(), packet = detail::encode(message)] {
      if (self->handlers_.arrived) self->handlers_.arrived(packet);
    });
  }

  const std::shared_ptr<detail::Head> head_;
  boost::asio::io_context& io_;
  const int number_;
  Handlers handlers_;  // on the head's thread
  std::uint64_t run_ = 0;
  std::map<std::uint64_t, Order> ranks_;  // by process
};

/// Says when all ranks run.
class WatchedPlacer final : public RankPlacer {
 public:
  WatchedPlacer(std::unique_ptr<RankPlacer> placer, std::promise<double>& started) : placer_(std::move(placer)), started_(started) {}
  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override { return placer_->place(group, spec); }
  void all_started() override { started_.set_value(now_s()); }
  void abort(const std::string& reason) noexcept override { placer_->abort(reason); }

 private:
  const std::unique_ptr<RankPlacer> placer_;
  std::promise<double>& started_;
};

struct SystemConfig : caf::actor_system_config {
  SystemConfig() {  // as TorchTrainer sets it
    set("scheduler.policy", caf::atom("sharing"));
    set("scheduler.max-threads", std::size_t{2});
    register_types(*this);
  }
};

template <class T>
T get(std::promise<T>& told, const char* what) {
  auto future = told.get_future();
  if (future.wait_for(60s) != std::future_status::ready) throw Failure{Errc::DeadlinePassed, std::string(what) + " did not come within 60 s"};
  return future.get();
}

double start_ranks(const Session& session, int num_nodes, const std::filesystem::path& storage) {
  detail::IoThread nodes_thread;
  ClusterOptions cluster;
  cluster.security.name = "head";
  const auto head = std::make_shared<detail::Head>(cluster);
  std::vector<std::shared_ptr<Node>> nodes;
  for (int i = 0; i < num_nodes; ++i) nodes.push_back(std::make_shared<Node>(head, nodes_thread.io(), i));
  for (const auto& node : nodes) node->join();
  if (!head->wait_for_nodes(num_nodes, 60s)) throw Failure{Errc::DeadlinePassed, "nodes did not join within 60 s"};

  std::promise<double> started;
  std::promise<Result> ended;
  SystemConfig config;
  caf::actor_system system{config};
  TrainerSetup setup;
  setup.function = "train";
  setup.config_json = R"({"hidden": 384, "lr": 2e-05})";
  setup.scaling.num_workers = num_nodes * ranks_of_a_node;
  setup.scaling.placement = Placement::Nodes;
  setup.run.name = "run";
  setup.run.storage_path = storage.string();
  setup.run.failure.snapshot_every = 0;
  setup.listeners = {system.spawn([&ended](caf::event_based_actor* self) -> caf::behavior {
    self->set_default_handler(caf::drop);
    return {[&ended, self](const RunEnded& news) {
      ended.set_value(news.result);
      self->quit();
    }};
  })};
  const double begin = now_s();
  const auto processes = detail::open_run_on(head, session, setup.scaling, setup.run);
  setup.make_placer = [&](const StartGroup& group) { return std::make_unique<WatchedPlacer>(make_placer_in(processes, group), started); };
  (void)system.spawn(trainer_behavior, std::move(setup));
  const double took = get(started, "the last rank") - begin;
  for (const auto& node : nodes) node->let_return();
  if (const auto result = get(ended, "the run's end"); result.error) throw Failure{result.error->code, result.error->message};
  return took;
}

int run(const Session& session, const std::string& json_file, int num_nodes) {
  auto pattern = (std::filesystem::temp_directory_path() / "troupe-nodes-bench-XXXXXX").string();
  if (!::mkdtemp(pattern.data())) throw Failure{Errc::StorageUnavailable, pattern + " cannot be made"};
  constexpr int rounds = 3;
  std::vector<double> times;
  for (int round = 0; round < rounds; ++round) times.push_back(start_ranks(session, num_nodes, std::filesystem::path(pattern) / std::to_string(round)));
  std::filesystem::remove_all(pattern);
  auto figures = nlohmann::ordered_json::array();
  figures.push_back(figure("nodes_start", median(times), {"s", 2, "limit for 8 ranks on each of " + std::to_string(num_nodes) + " nodes"}, rounds));
  if (!json_file.empty() && !(std::ofstream{json_file} << figures.dump(1) << "\n").flush()) throw Failure{Errc::StorageUnavailable, json_file + " cannot be written"};
  return 0;
}

}  // namespace
}  // namespace troupe::bench

int main(int argc, char** argv) {
  try {
    const troupe::Session session{argc, argv, {}};
    std::string json_file;
    int nodes = 1000;
    for (int i = 1; i < argc; i += 2) {
      const std::string word = argv[i];
      if (i + 1 == argc || (word != "--json" && word != "--nodes")) {
        std::cerr << "usage: nodes_bench [--json FILE] [--nodes N]\n";
        return 2;
      }
      if (word == "--json") json_file = argv[i + 1];
      if (word == "--nodes") nodes = std::stoi(argv[i + 1]);
    }
    return troupe::bench::run(session, json_file, nodes);
  } catch (const std::exception& error) {
    std::cerr << "nodes_bench: " << error.what() << "\n";
    return 1;
  }
}

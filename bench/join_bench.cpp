// What a cluster of 1,000 nodes costs its head: all of them join at once, by TLS with certificates of both ends, and 8,000 ranks are placed.
//
//   join_bench [--json FILE] [--nodes N]     a table on stderr and FILE
//
// Nodes are links of this process on four threads, each of which tells the head what it offers, as an agent does; the head is a real Cluster.
#include "../actors/cluster/node_messages.hpp"
#include "../actors/io_thread.hpp"
#include "control_figures.hpp"

#include <troupe/cluster.hpp>
#include <troupe/placement.hpp>

#include <boost/asio/post.hpp>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace troupe::bench {
namespace {

using namespace std::chrono_literals;

/// Links of many nodes.
class Crowd {
 public:
  ~Crowd() {
    for (auto& thread : threads_) thread.stop();
    for (const auto& link : links_) *link = nullptr;  // whose handlers own it
  }

  void join(const std::string& address, const ClusterSecurity& security, int number) {
    auto options = detail::node_link_options();
    options.silence = 60s;
    options.handshake_timeout = 60s;  // of a thousand at once on two cores
    const auto line = std::make_shared<std::shared_ptr<detail::SecureLink>>();
    detail::SecureLink::Handlers handlers;
    handlers.opened = [line, number](const ClusterIdentity&, const std::string&) {
      detail::JoinNode request;
      request.name = "n-" + std::to_string(number);
      request.address = "10.0.0.1";
      request.resources = {.cpus = 8, .gpus = 8, .memory_bytes = 1};
      (void)(*line)->send(detail::encode(request));
    };
    handlers.arrived = [](const detail::Packet&) {};
    handlers.closed = [this, number](const Outcome& outcome) {
      if (!outcome.ok() && failures_++ == 0) std::cerr << "node " << number << ": " << outcome.text() << "\n";
    };
    auto& io = threads_[static_cast<std::size_t>(number % 4)].io();
    boost::asio::post(io, [=, &io] {  // so that it is there before its handlers run
      *line = detail::SecureLink::connect(io, address, ClusterRole::Node, ClusterRole::Head, security, options, handlers);
    });
    links_.push_back(line);
  }

 private:
  std::array<detail::IoThread, 4> threads_;
  std::vector<std::shared_ptr<std::shared_ptr<detail::SecureLink>>> links_;
  std::atomic<int> failures_{0};
};

double join_storm(int nodes, const std::filesystem::path& folder) {
  make_cluster_ca(folder, "bench", 24h * 90);
  issue_certificate(folder, ClusterRole::Head, "head", 24h * 90, folder);
  issue_certificate(folder, ClusterRole::Node, "n", 24h * 90, folder);
  ClusterOptions options;
  options.listen = "127.0.0.1:0";
  options.security = {folder, "head", false};
  options.node_silence = 60s;
  const auto cluster = Cluster::open(options);
  const auto begin = now_s();
  Crowd crowd;
  for (int i = 0; i < nodes; ++i) crowd.join(cluster->address(), {folder, "n", false}, i);
  if (!cluster->wait_for_nodes(nodes, 60s)) {
    throw Failure{Errc::DeadlinePassed, std::to_string(cluster->status().nodes.size()) + " of " + std::to_string(nodes) + " nodes joined within 60 s"};
  }
  return now_s() - begin;
}

double placing(int nodes, PlacementStrategy strategy) {
  std::vector<NodeRoom> rooms;
  for (int i = 0; i < nodes; ++i) rooms.push_back({"n-" + std::to_string(i), {.cpus = 8, .gpus = 8}, {.cpus = 8, .gpus = 8}, {}});
  std::vector<double> times;
  for (int run = 0; run < 5; ++run) {
    const auto begin = now_s();
    const auto places = place_ranks(rooms, {{.cpus = 1, .gpus = 1}, {}}, 8 * nodes, strategy);
    times.push_back(now_s() - begin);
    if (places.node_of.size() != static_cast<std::size_t>(8 * nodes)) throw Failure{Errc::Internal, places.missing};
  }
  return median(times);
}

}  // namespace
}  // namespace troupe::bench

int main(int argc, char** argv) {
  using namespace troupe;
  using namespace troupe::bench;
  std::string json;
  int nodes = 1000;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string{argv[i]} == "--json") json = argv[i + 1];
    if (std::string{argv[i]} == "--nodes") nodes = std::stoi(argv[i + 1]);
  }
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  const auto folder = std::filesystem::temp_directory_path() / ("join_bench-" + std::to_string(getpid()));
  int code = 0;
  try {
    auto all = nlohmann::ordered_json::array();
    const auto count = std::to_string(nodes);
    all.push_back(figure("join_storm", join_storm(nodes, folder), {"s", 5, "limit for " + count + " nodes at once"}, 1));
    all.push_back(figure("join_place_pack", placing(nodes, PlacementStrategy::Pack), {"s", 0.1, "limit for 8 ranks on each node"}, 5));
    all.push_back(figure("join_place_spread", placing(nodes, PlacementStrategy::Spread), {"s", 0.1, "limit for 8 ranks on each node"}, 5));
    if (!json.empty()) std::ofstream{json} << all.dump(1) << "\n";
  } catch (const std::exception& error) {
    std::cerr << "join_bench: " << error.what() << "\n";
    code = 1;
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return code;
}

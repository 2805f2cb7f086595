#pragma once

#include <troupe/cluster_security.hpp>
#include <troupe/errors.hpp>
#include <troupe/placement.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

class ClusterMail;

struct ClusterOptions {
  std::string listen = "127.0.0.1:7077";  ///< where nodes join; port 0: any. Beyond loopback it needs `security`
  ClusterSecurity security;
  std::chrono::milliseconds node_silence{1'500};     ///< a node that was not heard of for so long is lost, whether its connection broke or fell silent
  std::shared_ptr<ClusterMail> mail{};               ///< this program's actors, for those on nodes, and the other way (troupe/cluster_mail.hpp)
};

enum class NodeState : std::uint8_t { Up, Draining, Away };
[[nodiscard]] const char* name(NodeState state) noexcept;

struct NodeStatus {
  std::string name, address;
  NodeState state = NodeState::Up;
  Resources total, free;
  Labels labels;
  std::int64_t pid = 0;
  double heard_seconds_ago = 0;
  std::vector<std::string> ranks;  ///< "mrpc/3"
};

struct RunStatus {
  std::string name, path, state;  ///< "starting", "running", "restarting", "ended"
  std::uint64_t attempt = 0;
  int num_ranks = 0, restarts = 0;
  std::vector<std::string> node_of_rank;
  std::uint64_t step = 0;          ///< the last reported progress
  double steps_per_second = 0;
  std::string last_report_json;
  std::string error;
};

struct ClusterStatus {
  std::vector<NodeStatus> nodes;
  std::vector<RunStatus> runs;
  double up_seconds = 0;
};

/// The head: knows the nodes that have joined, and places the ranks of this program's runs on them. One of it may serve many trainers.
/// Threads: any. It lives as long as a handle or a run does; nodes whose head is gone end their ranks and try to join again.
class Cluster {
 public:
  virtual ~Cluster() = default;
  /// Listens. Throws Failure{InvalidConfig, StartFailed}.
  [[nodiscard]] static std::shared_ptr<Cluster> open(ClusterOptions options);
  /// "10.0.0.1:7077"
  [[nodiscard]] virtual std::string address() const = 0;
  [[nodiscard]] virtual ClusterStatus status() const = 0;
  /// Blocks until so many nodes are up; false: they were not within `limit`.
  [[nodiscard]] virtual bool wait_for_nodes(int count, std::chrono::milliseconds limit) = 0;
  /// No rank is placed on it any more; runs that have some there stop at a step boundary and go on elsewhere. Throws Failure{NotFound}.
  virtual void drain(const std::string& node) = 0;
};

/// The cluster of a program that `troupe launch` started: listens where it says (TROUPE_CLUSTER_LISTEN, with the certificates of TROUPE_CLUSTER_CERTS)
/// and waits until the expected nodes have joined. nullptr when it was not launched. Call it after the session is made: ranks return there.
/// Throws Failure{DeadlinePassed} naming the nodes that are here and those that are not.
[[nodiscard]] std::shared_ptr<Cluster> cluster_from_environment(ClusterOptions options = {});

}  // namespace troupe

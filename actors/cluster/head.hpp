#pragma once

#include "cluster_view.hpp"
#include "node_messages.hpp"

#include "../cluster_places.hpp"
#include "../io_thread.hpp"
#include "../output_relay.hpp"

#include <troupe/cluster.hpp>

#include <boost/asio/thread_pool.hpp>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace troupe::detail {

class HeadRun;

/// A node that has joined. On the head's thread, but for what never changes.
struct HeadNode {
  std::string name, address;
  std::shared_ptr<SecureLink> link;
  Resources total, free;
  std::vector<double> devices;  ///< what is free of each GPU
  Labels labels;
  std::int64_t pid = 0;
  bool is_draining = false;
  std::chrono::steady_clock::time_point heard;
  std::set<std::uint64_t> runs;  ///< that were opened there

  void send(const NodeMessage& message) { (void)link->send(encode(message)); }
};

/// The head of a cluster: its members, and the runs that have or want places on them. Everything but what is marked happens on its thread.
class Head final : public ClusterView {
 public:
  explicit Head(ClusterOptions options);
  /// Ends every link, nodes their ranks. On another thread than its own.
  ~Head() override;
  Head(const Head&) = delete;
  Head& operator=(const Head&) = delete;

  // ---- any thread
  void listen();
  [[nodiscard]] std::string address() const;
  [[nodiscard]] ClusterStatus status() const override;
  [[nodiscard]] bool wait_for_nodes(int count, std::chrono::milliseconds limit);
  void drain(const std::string& node) override;
  void stop(const std::string& run, bool now) override;
  [[nodiscard]] LogRing& logs() override { return logs_; }
  [[nodiscard]] boost::asio::io_context& io() noexcept { return thread_.io(); }
  [[nodiscard]] boost::asio::io_context& disk() noexcept { return disk_.io(); }
  /// Threads that may wait for a node.
  [[nodiscard]] boost::asio::thread_pool& reads() noexcept { return reads_; }
  [[nodiscard]] std::uint64_t next_id() noexcept { return ++ids_; }

  // ---- its own
  /// A new peer: what its link is to tell.
  [[nodiscard]] SecureLink::Handlers greet(const ClusterIdentity& peer, const std::shared_ptr<SecureLink>& link);
  [[nodiscard]] ClusterStatus status_now() const;
  /// False: there is no such node.
  [[nodiscard]] bool drain_now(const std::string& node, const std::string& reason);
  /// False: there is no such run.
  [[nodiscard]] bool stop_now(const std::string& run, bool at_once);
  void add_run(std::shared_ptr<HeadRun> run);
  void remove_run(const std::shared_ptr<HeadRun>& run);
  /// Places have become free: those that wait try again, the longest waiting first.
  void places_changed();
  [[nodiscard]] const std::map<std::string, std::shared_ptr<HeadNode>>& nodes() const noexcept { return nodes_; }

 private:
  class Door;
  friend class Door;

  /// Runs `work` on the head's thread and waits for it; there at once.
  template <class Work>
  auto on_thread(Work work) const;
  SecureLink::Handlers greet_operator(const std::shared_ptr<SecureLink>& link);
  void link_closed(const std::shared_ptr<SecureLink>& link);
  std::shared_ptr<HeadNode> join(const JoinNode& request, const ClusterIdentity& peer, const std::shared_ptr<SecureLink>& link, const std::string& address);
  void heard(const std::shared_ptr<HeadNode>& node, NodeMessage message);
  void lost(const std::shared_ptr<HeadNode>& node, const std::string& why);
  void pass_mail(UserMail letter);
  void print(const std::shared_ptr<HeadNode>& node, OutputFromRank line);

  const ClusterOptions options_;
  LogRing logs_;
  mutable IoThread thread_, disk_, output_;  // end last: others own their timers and sockets
  boost::asio::thread_pool reads_{4};
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  std::atomic<std::uint64_t> ids_{0};
  std::atomic<bool> stopping_{false};
  std::map<std::string, std::shared_ptr<HeadNode>> nodes_;  // by name
  std::map<std::string, NodeStatus> away_;
  std::vector<std::shared_ptr<HeadRun>> runs_;
  std::deque<RunStatus> ended_runs_;
  std::set<std::shared_ptr<SecureLink>> links_;
  std::shared_ptr<SecureListener> listener_;
  // Any thread's.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int num_up_ = 0;
  bool has_links_ = false;
};

/// A run's processes on the nodes of `head`. Throws Failure{StartFailed} when this program's file cannot be read.
[[nodiscard]] std::shared_ptr<NodeProcesses> open_run_on(std::shared_ptr<Head> head, const Session& session, const ScalingConfig& scaling, const RunConfig& run);

}  // namespace troupe::detail

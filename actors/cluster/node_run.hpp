#pragma once

#include "node_messages.hpp"
#include "output_gate.hpp"

#include "../process_pool.hpp"

#include <boost/asio/steady_timer.hpp>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

namespace boost::asio {
class thread_pool;
}

namespace troupe::detail {

class NodeDisk;

/// A node's way to its head, as long as one link lasts. Threads: any.
struct HeadLine {
  std::shared_ptr<SecureLink> link;
  OutputGate gate;
  void send(const NodeMessage& message) { (void)link->send(encode(message)); }
};

/// A run's processes on a node: carries out what the head orders, and tells it the news. On the thread of `io`; what may take long happens on that of
/// `disk` (reading the program) or on one of `jobs` (checkpoints) while later orders wait.
class NodeRun : public std::enable_shared_from_this<NodeRun> {
 public:
  /// @param sink gets what ranks print; nothing: this process's standard output and error
  NodeRun(boost::asio::io_context& io, boost::asio::io_context& disk, boost::asio::thread_pool& jobs, std::shared_ptr<HeadLine> head, OpenRun order,
          bool forward_output, std::string node);
  ~NodeRun();
  void begin();
  void take(NodeMessage message);
  /// Nothing is told any more.
  void retire();
  /// After `retire`: ends its processes, and waits for that, on another thread than io's.
  void end_processes();

 private:
  struct Entry {
    std::shared_ptr<RankProcess> process;
    Attempt attempt = 0;
    bool was_killed = false;
    std::optional<RankBeat> told;
  };

  void carry_out(NodeMessage message);
  void check_program();
  void open_attempt(const OpenAttempt& order);
  void attempt_opened(const OpenAttempt& order, const std::string& refusal);
  void take_process(const TakeProcess& order);
  void to_rank(const ToRank& order);
  void ask_stacks(std::uint64_t process);
  void stacks_due(std::uint64_t process, int looks_left);
  void process_ended(std::uint64_t process, ProcessEnded end);
  void watch();
  void resume();
  [[nodiscard]] Entry* find(std::uint64_t process);
  [[nodiscard]] PoolOrder pool_order();
  void refuse(std::uint64_t process, Errc code, const std::string& why);

  boost::asio::io_context& io_;
  boost::asio::io_context& disk_;
  const std::shared_ptr<HeadLine> head_;
  const OpenRun order_;
  const bool forward_output_;
  const std::string node_;
  const std::shared_ptr<NodeDisk> files_;
  boost::asio::steady_timer beat_;
  std::atomic<bool> is_closing_{false};
  bool is_busy_ = true;  // something is looked at on `disk_`
  std::deque<NodeMessage> later_;
  std::string refusal_;          // of every process
  std::string attempt_refusal_;  // of those of this attempt
  Attempt attempt_ = 0;
  std::shared_ptr<SharedGroup> memory_;
  std::map<std::int32_t, int> local_rank_;
  std::map<std::uint64_t, std::shared_ptr<Entry>> entries_;
  std::unique_ptr<ProcessPool> pool_;
};

}  // namespace troupe::detail

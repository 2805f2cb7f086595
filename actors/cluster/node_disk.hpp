#pragma once

#include "node_run.hpp"
#include "questions.hpp"

#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

namespace troupe::detail {

/// A run's directory on a node: whether it is the head's, or a disk of its own on which parts of checkpoints are kept. What it does happens in order on
/// one of the pool's threads. Threads: any.
class NodeDisk : public std::enable_shared_from_this<NodeDisk> {
 public:
  NodeDisk(boost::asio::thread_pool& jobs, std::shared_ptr<HeadLine> head, std::uint64_t run, std::string node);

  /// Finds out which it is, makes the checkpoint that the attempt resumes from whole here, and calls `done`, there: what keeps ranks from
  /// starting, or nothing.
  void open(const OpenAttempt& order, std::function<void(const std::string& refusal)> done);
  /// False: it is no message for a disk.
  [[nodiscard]] bool take(NodeMessage& message);
  /// What `open` still brings for this attempt is not wanted any more.
  void abort(Attempt attempt);
  /// Nothing comes from the head any more.
  void close();

 private:
  void post(std::function<void()> job);
  void prepare(const OpenAttempt& order, std::vector<std::string>& warnings);
  void keep(const KeepPart& order);
  void drop(const DropParts& order);
  /// The head's, as the questions of a job see it: they end when `attempt` is aborted; 0: of no attempt.
  [[nodiscard]] LinkDisk head_disk(Attempt attempt);

  boost::asio::strand<boost::asio::thread_pool::executor_type> strand_;
  const std::shared_ptr<HeadLine> head_;
  const std::uint64_t run_;
  const std::string node_;
  Questions questions_;
  std::atomic<Attempt> aborted_{0};
  std::atomic<bool> is_closed_{false};
  bool is_own_ = false;  // the jobs'
};

}  // namespace troupe::detail

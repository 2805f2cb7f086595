#pragma once

#include <troupe/cluster_security.hpp>
#include <troupe/placement.hpp>
#include <troupe/errors.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace troupe {

struct NodeOptions {
  std::string join;            ///< the head's "HOST:PORT"
  std::string name;            ///< empty: the host's
  std::string address;         ///< of the network that ranks use between hosts; empty: the one that reaches the head
  Resources resources;         ///< zero cpus: those of this machine
  Labels labels;
  ClusterSecurity security;
  std::chrono::milliseconds head_grace{5'000};   ///< the head was not heard of for so long, or for 1.5 s when that is less: its ranks are ended
  std::chrono::milliseconds give_up_after{0};    ///< ends when no head could be joined for so long; 0: tries for ever
  bool end_with_head = false;                    ///< ends, well, when a head that it had joined has ended in order; else it waits for another
  bool forward_output = true;                    ///< ranks' output goes to the head; false: it stays on this node's
};

/// A node: joins a head, starts processes for it, watches them, passes on what they say and print, and ends them when the head is gone.
/// Threads: any. For programs that embed it; the command is `troupe node`.
class NodeAgent {
 public:
  virtual ~NodeAgent() = default;
  /// Starts; returns at once. @param news what happens, in words ("joined 10.0.0.1:7077"), on another thread
  [[nodiscard]] static std::unique_ptr<NodeAgent> start(NodeOptions options, std::function<void(const std::string&)> news = {});
  /// Leaves on notice: the head moves its ranks away first, within `limit`.
  virtual void leave(std::chrono::milliseconds limit) = 0;
  /// Blocks until it has left, or has given up.
  virtual Outcome wait() = 0;
};

}  // namespace troupe

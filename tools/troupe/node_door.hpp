#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace troupe::tools {

/// Where further tasks of a node wait for its first one, which works for all: a socket of this host and user, told apart by `key`.
class NodeDoor {
 public:
  /// Without effect when the name is taken.
  explicit NodeDoor(const std::string& key);
  ~NodeDoor();
  NodeDoor(const NodeDoor&) = delete;
  NodeDoor& operator=(const NodeDoor&) = delete;

  /// All who wait end with this code.
  void tell(int code);

 private:
  void take();

  int socket_ = -1;
  std::mutex mutex_;
  std::vector<int> waiting_;
  std::thread thread_;
};

/// The code that the node's first task tells; 1 when it ended without one; 0 when there was none to wait for within `limit`.
[[nodiscard]] int wait_at_door(const std::string& key, std::chrono::milliseconds limit);

}  // namespace troupe::tools

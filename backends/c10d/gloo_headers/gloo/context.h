#pragma once
// Ours: LibTorch ships Gloo inside libtorch_cpu but not its headers. These five declare what its ProcessGroupGloo.hpp
// names, and no more. Never link another Gloo into the process: the symbols are the same.
#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  /// Ends every transfer under way and to come, here and, as their sockets close, at the peers.
  void closeConnections();
};

}  // namespace gloo

#pragma once

#include "log_ring.hpp"

#include <troupe/cluster.hpp>

#include <string>

namespace troupe::detail {

/// What an operator may see of a head and order it to do: all there is. Cluster implements it; operator.hpp answers packets with it.
/// Threads: any; nothing here blocks for longer than a lock.
class ClusterView {
 public:
  virtual ~ClusterView() = default;
  [[nodiscard]] virtual ClusterStatus status() const = 0;
  /// The run stops at its next step boundary, with a checkpoint; `now`: its ranks are ended at once. Throws Failure{NotFound} naming the runs there are.
  virtual void stop(const std::string& run, bool now) = 0;
  /// As Cluster::drain. Throws Failure{NotFound} naming the nodes there are.
  virtual void drain(const std::string& node) = 0;
  /// What ranks print; the head adds to it.
  [[nodiscard]] virtual LogRing& logs() = 0;
};

}  // namespace troupe::detail

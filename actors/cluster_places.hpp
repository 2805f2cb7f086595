#pragma once

#include "rank_processes.hpp"

#include <troupe/cluster.hpp>
#include <troupe/run_storage.hpp>
#include <troupe/session.hpp>

namespace troupe::detail {

/// The processes of one run on a cluster's nodes. Threads: any.
class NodeProcesses : public RankProcesses {
 public:
  /// What the cluster asks of the run. Called on the cluster's thread, or never.
  struct Orders {
    std::function<void(const std::string& reason)> move;  ///< go on elsewhere, from a step boundary on
    std::function<void(const std::string& reason, bool now)> stop;  ///< at a step boundary, or at once
    std::function<void(const std::string& text)> warn;              ///< tell the user
  };
  virtual void take_orders(Orders orders) = 0;
  /// What the cluster's status says of the run.
  virtual void tell_status(std::function<void(RunStatus&)> change) = 0;
  /// Its directory on this host, which has all of its checkpoints, and parts of them on nodes that have disks of their own. As OpenStorage.
  [[nodiscard]] virtual std::unique_ptr<RunStorage> open_storage(const RunConfig& run, const std::function<void(const std::filesystem::path&)>& before_reading) = 0;
  /// Ends its processes and gives their places back; its status stays as long as it lives.
  virtual void close() noexcept = 0;
};

/// What a Trainer wants of a Cluster, beside its public face. Every Cluster is one.
class ClusterPlaces {
 public:
  virtual ~ClusterPlaces() = default;
  /// Of a new run. Throws Failure{StartFailed} when this program's file cannot be read.
  [[nodiscard]] virtual std::shared_ptr<NodeProcesses> processes_for(const Session& session, const ScalingConfig& scaling, const RunConfig& run) = 0;
};

}  // namespace troupe::detail

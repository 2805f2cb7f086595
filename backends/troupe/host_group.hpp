#pragma once

#include <troupe/communicator.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

/// What a rank is told of a group that spans hosts.
struct HostPlan {
  std::vector<int> ranks_on;  ///< how many ranks each host has; they are numbered host by host. Empty: the group is on one host
  std::string address;        ///< of this rank's host on the cluster's network: the only one that it listens on, "10.0.0.2"
  std::string key;            ///< 32 bytes, of this attempt alone: who has it belongs to the group
  bool operator==(const HostPlan&) const = default;
};

/// Where a rank waits for its peers of other hosts: a TLS listener on an ephemeral port. TLS 1.3 with the attempt's key as external PSK
/// (RFC 8446 §2.2, RFC 9258's concern met by a key of 256 random bits): no certificate is needed in a rank, and one of another attempt cannot join.
class HostMeeting {
 public:
  virtual ~HostMeeting() = default;
  /// "10.0.0.2:43210"; told to the other ranks over the control plane.
  [[nodiscard]] virtual std::string endpoint() const = 0;
  /// Connects with the ranks at this rank's place on the other hosts and makes its seat: inside a host over `local` (its seat among the ranks of
  /// its host), between hosts over sockets. Blocks until all are connected.
  /// `endpoints`: where they wait, by host; empty where a host has fewer ranks.
  /// `timeout` is also how long its collectives wait, until `set_timeout`. Once only.
  /// Throws Failure{DeadlinePassed} naming ranks that did not come, Failure{Aborted} after `abort`.
  [[nodiscard]] virtual std::unique_ptr<Communicator> join(const std::vector<std::string>& endpoints, std::unique_ptr<Communicator> local,
                                                           std::chrono::milliseconds timeout) = 0;
  /// Ends a `join` that waits. Any thread.
  virtual void abort(const std::string& reason) noexcept = 0;

  /// Throws Failure{StartFailed} when `plan.address` is none of this host's.
  [[nodiscard]] static std::unique_ptr<HostMeeting> open(const HostPlan& plan, int rank);
};

/// Bytes that this rank has sent to other hosts, encryption included; 0 of a group without other hosts.
[[nodiscard]] std::uint64_t wire_bytes(const Communicator& group) noexcept;

}  // namespace troupe

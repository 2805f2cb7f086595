#pragma once

#include "host_socket.hpp"
#include "host_tls.hpp"
#include "host_topology.hpp"

#include <troupe/host_group.hpp>

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace troupe::detail {

/// What is sent over one of the two connections between peers of a lane: the bytes of collectives, or why the group ends.
enum class Channel : std::uint32_t { Data, Control };

/// A peer on another host.
struct HostLink {
  int rank = 0;  ///< in this group
  int host = 0;
  std::array<std::unique_ptr<TlsStream>, 2> streams{};  ///< by Channel
  [[nodiscard]] TlsStream& data() const noexcept { return *streams[0]; }
  [[nodiscard]] TlsStream& control() const noexcept { return *streams[1]; }
};

/// What a meeting is about.
struct MeetingPlan {
  HostTopology topology;
  std::string address;                 ///< of this host
  std::shared_ptr<const TlsKey> key;
  std::string group;                   ///< sets groups that were split from one another apart: "/3.1"
  bool plain = false;                  ///< data without encryption, for measurements
};

/// Connects with the peers in this rank's lane: the lower rank connects to the higher. Strangers are turned away.
/// `endpoints`: where they wait, by host.
/// Throws Failure{DeadlinePassed}, and what `check` throws, which is asked every 50 ms.
[[nodiscard]] std::vector<HostLink> connect_lane(const MeetingPlan& plan, const Fd& listener, const std::vector<std::string>& endpoints,
                                                 std::chrono::milliseconds timeout, const std::function<void()>& check);

/// A meeting as the public interface has it, with what it leaves out.
[[nodiscard]] std::unique_ptr<HostMeeting> open_meeting(MeetingPlan plan);

}  // namespace troupe::detail

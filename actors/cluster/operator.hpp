#pragma once

#include "cluster_view.hpp"
#include "operator_messages.hpp"

#include <functional>
#include <memory>
#include <mutex>
#include <optional>

namespace troupe::detail {

/// Answers one request; never throws: what cannot be done is a Refused packet. Nothing when `Logs` with `follow` found no line yet.
[[nodiscard]] std::optional<Packet> answer_operator(ClusterView& view, const Packet& request);

/// A head's end of one operator's link: answers its packets, and lets followers of logs wait. At most `max_waiting` requests wait at once.
/// Threads: any. Keep `view` alive for as long as this.
class OperatorSession : public std::enable_shared_from_this<OperatorSession> {
 public:
  static constexpr int max_waiting = 16;
  using Send = std::function<Outcome(Packet)>;

  /// @param send puts a packet on the link; what it returns when the link is closed ends nothing here
  [[nodiscard]] static std::shared_ptr<OperatorSession> make(ClusterView& view, Send send);
  ~OperatorSession();
  void arrived(const Packet& request);
  /// The link closed: no `send` after this returns.
  void close();

 private:
  OperatorSession(ClusterView& view, Send send) : view_(view), send_(std::move(send)) {}
  void put(Packet packet);
  void wait(const OperatorRequest& request);
  void woken(const OperatorRequest& request);

  ClusterView& view_;
  std::mutex mutex_;
  Send send_;
  std::map<std::uint64_t, std::uint64_t> waiters_;  // by request
};

}  // namespace troupe::detail

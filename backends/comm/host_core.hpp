#pragma once

#include "host_links.hpp"

#include <troupe/communicator.hpp>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace troupe::detail {

/// What a rank of a group of hosts holds: its seat inside the host, its connections, and what the group died of.
///
/// A thread watches the connections on which peers say why a group ends, and the group inside the host, so that a failure anywhere
/// reaches every rank of every host within 100 ms, whatever its rank is doing.
class HostCore {
 public:
  HostCore(MeetingPlan plan, std::vector<HostLink> links, std::unique_ptr<Communicator> local);
  ~HostCore();
  HostCore(const HostCore&) = delete;
  HostCore& operator=(const HostCore&) = delete;

  /// The first call decides what the group died of. Any thread.
  void fail(Errc code, const std::string& text) noexcept;
  [[nodiscard]] bool broken() const noexcept { return broken_.load(std::memory_order_acquire); }
  /// Of a broken group. Any thread.
  [[nodiscard]] Outcome failure() const;
  /// A group that ends when this one fails.
  void adopt(const std::shared_ptr<HostCore>& child);

  [[nodiscard]] const HostTopology& topology() const noexcept { return plan_.topology; }
  [[nodiscard]] const MeetingPlan& plan() const noexcept { return plan_; }
  /// Only the thread of the collectives makes calls, except `abort` and `allocate`.
  [[nodiscard]] Communicator& local() noexcept { return *local_; }
  [[nodiscard]] std::vector<HostLink>& links() noexcept { return links_; }
  [[nodiscard]] std::uint64_t wire_bytes() const noexcept;

 private:
  /// What a peer was heard to say so far.
  struct Heard {
    std::vector<std::byte> bytes;
    bool gone = false;
  };
  void watch();
  void look_around(std::vector<Heard>& heard);
  void hear(std::size_t link, Heard& heard);
  void tell() noexcept;

  MeetingPlan plan_;
  std::vector<HostLink> links_;
  std::unique_ptr<Communicator> local_;
  Fd wake_;
  std::atomic<bool> broken_{false}, stop_{false};
  mutable std::mutex mutex_;
  Outcome failure_;
  std::vector<std::weak_ptr<HostCore>> children_;
  std::thread watcher_;
};

}  // namespace troupe::detail

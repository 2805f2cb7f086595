#pragma once

#include "child_process.hpp"
#include "io_thread.hpp"
#include "output_relay.hpp"
#include "rank_observer.hpp"

#include <troupe/link.hpp>
#include <troupe/local_groups.hpp>
#include <troupe/session.hpp>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace troupe::detail {

/// What became of a rank's process.
struct ProcessEnded {
  Outcome start;                      ///< not ok: it never ran
  Outcome link;                       ///< how its link ended
  ChildStatus status;
  std::vector<std::string> last_lines;
};

/// A rank's process and the link to it. Threads: any.
class HostedRank {
 public:
  virtual ~HostedRank() = default;
  /// Not ok: the message is too long for the link.
  [[nodiscard]] virtual Outcome send(const LinkMessage& message) = 0;
  virtual void kill() noexcept = 0;
  [[nodiscard]] virtual std::shared_ptr<RankObserver> observer() = 0;
};

/// Starts the ranks of one attempt as processes and watches over them. What is left of them when it is destroyed is
/// killed.
///
/// Threads: any. One thread of its own starts and reaps processes and serves their links; another passes output on.
class ProcessHost {
 public:
  struct Handlers {
    std::function<void(LinkMessage)> arrived;
    /// Exactly once, the last call: the process is reaped, its link closed and its output read.
    std::function<void(ProcessEnded)> ended;
  };

  /// Throws Failure{StartFailed}.
  ProcessHost(const Session& session, const StartGroup& group);
  ~ProcessHost();

  /// Returns at once. Handlers are called on another thread.
  [[nodiscard]] std::shared_ptr<HostedRank> start(int rank, Handlers handlers);
  void abort(const std::string& reason) noexcept { memory_->abort(reason); }

 private:
  class Rank;

  const StartGroup group_;
  ChildOrder order_;
  std::string identity_;
  std::unique_ptr<SharedGroup> memory_;
  std::mutex mutex_;
  std::vector<std::weak_ptr<Rank>> ranks_;
  OutputRelay output_;
  IoThread thread_;
};

}  // namespace troupe::detail

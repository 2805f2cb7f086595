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

/// A process of this program that can be a rank, one attempt after another, and the link to it. Threads: any.
class RankProcess {
 public:
  virtual ~RankProcess() = default;
  /// Gives it a seat in `group`, for the RunRank of `attempt` that is sent next.
  virtual void give_seat(std::shared_ptr<SharedGroup> group, Attempt attempt) = 0;
  /// Not ok: the message is too long for the link.
  [[nodiscard]] virtual Outcome send(const LinkMessage& message) = 0;
  /// Calls back, on another thread, with the last lines that it has printed so far.
  virtual void read_output(std::function<void(std::vector<std::string>)> done) = 0;
  /// Ends it when it has read everything.
  virtual void finish() = 0;
  virtual void kill() noexcept = 0;
  [[nodiscard]] virtual std::shared_ptr<RankObserver> observer() = 0;
};

/// The processes of a run's ranks: started when a rank needs one, kept from a failed attempt to the next, or kept ready.
/// What is left of them when it is destroyed is ended.
///
/// Threads: any. One thread of its own starts and reaps processes and serves their links; another passes output on.
class ProcessPool {
 public:
  struct Handlers {
    std::function<void(LinkMessage)> arrived;
    std::function<void()> opened{};  ///< the process runs and can be a rank
    /// At most once, the last call: the process is reaped, its link closed and its output read.
    std::function<void(ProcessEnded)> ended;
  };

  ProcessPool(const Session& session, const ScalingConfig& scaling, const RunConfig& run);
  ~ProcessPool();

  /// Says how many ranks the next attempt has. Throws Failure{StartFailed} when limits do not allow so many processes.
  void begin_attempt(int world_size);
  /// A process for a rank: the one that was this rank, a spare one, or a new one. Returns at once. Handlers are called on
  /// another thread.
  [[nodiscard]] std::shared_ptr<RankProcess> take(int rank, Handlers handlers);
  /// Keeps a process whose train function has ended. Its handlers are not called any more.
  void give_back(const std::shared_ptr<RankProcess>& process);
  /// Starts processes until so many are ready for any rank.
  void keep_spares(int count);
  /// Starts them until so many more could be ranks, and says how many can, once all have shown it. Those stay for the next attempt.
  /// Throws Failure{StartFailed} when limits do not allow so many.
  void find_places(int count, std::function<void(int found, const std::string& why)> done);
  /// Ends all processes that wait: the next attempt has new ones.
  void start_anew();

 private:
  class Process;
  class Search;
  struct Machinery {  // made when the first process is
    IoThread thread;
    OutputRelay output;  // ends first: it tells the thread of the output's end
  };

  std::shared_ptr<Process> start(int rank, Handlers handlers);
  void launch(const std::shared_ptr<Process>& process);
  Handlers waiting_handlers(const std::weak_ptr<Process>& process, std::shared_ptr<Search> search = nullptr);
  void start_spare(std::shared_ptr<Search> search = nullptr);
  void forget(const std::shared_ptr<Process>& process);

  const std::chrono::milliseconds start_timeout_;
  ChildOrder order_;
  std::string identity_;
  std::mutex mutex_;
  int world_size_ = 0;
  int started_ = 0;  // processes, ever
  std::vector<std::shared_ptr<Process>> waiting_;
  std::vector<std::weak_ptr<Process>> processes_;
  std::unique_ptr<Machinery> machinery_;
};

}  // namespace troupe::detail

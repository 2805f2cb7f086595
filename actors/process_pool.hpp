#pragma once

#include "child_process.hpp"
#include "io_thread.hpp"
#include "output_relay.hpp"
#include "rank_processes.hpp"

#include <troupe/link.hpp>
#include <troupe/local_groups.hpp>
#include <troupe/session.hpp>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace troupe::detail {

/// What processes are started as.
struct PoolOrder {
  std::string program;                             ///< path of the file
  std::vector<std::string> arguments;              ///< program name first
  std::map<std::string, std::string> environment;  ///< beside this process's own, and before it
  int cpus_per_rank = 1;
  std::chrono::milliseconds start_timeout{60'000};
  std::function<void(OutputLine)> output{};        ///< gets what they print; nothing: this process's standard output and error
};

/// Processes of this host that can be ranks of a run: started when a rank needs one, kept from a failed attempt to the next, or kept
/// ready. What is left of them when it is destroyed is ended.
///
/// Threads: any. One thread of its own starts and reaps processes and serves their links; another passes output on.
class ProcessPool {
 public:
  using Handlers = ProcessHandlers;

  explicit ProcessPool(PoolOrder order);
  ~ProcessPool();

  /// Says which ranks the next attempt has here. Throws Failure{StartFailed} when limits do not allow so many processes.
  void begin_attempt(std::span<const int> ranks);
  /// A process for a rank: the one that was this rank, a spare one, or a new one. Returns at once. Handlers are called on
  /// another thread.
  [[nodiscard]] std::shared_ptr<RankProcess> take(int rank, Handlers handlers);
  /// Gives a process that was taken a seat in `group`, for the RunRank of `attempt` that is sent next.
  void give_seat(const std::shared_ptr<RankProcess>& process, std::shared_ptr<SharedGroup> group, Attempt attempt);
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
    explicit Machinery(std::function<void(OutputLine)> sink) : output(std::move(sink)) {}
    IoThread thread;
    OutputRelay output;  // ends first: it tells the thread of the output's end
  };

  std::shared_ptr<Process> start(int rank, Handlers handlers);
  void launch(const std::shared_ptr<Process>& process);
  Handlers waiting_handlers(const std::weak_ptr<Process>& process, std::shared_ptr<Search> search = nullptr);
  void start_spare(std::shared_ptr<Search> search = nullptr);
  void forget(const std::shared_ptr<Process>& process);

  const std::chrono::milliseconds start_timeout_;
  const std::function<void(OutputLine)> sink_;
  ChildOrder order_;
  std::string identity_;
  std::mutex mutex_;
  int started_ = 0;  // processes, ever
  std::vector<std::shared_ptr<Process>> waiting_;
  std::vector<std::weak_ptr<Process>> processes_;
  std::unique_ptr<Machinery> machinery_;
};

}  // namespace troupe::detail

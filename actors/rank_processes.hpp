#pragma once

#include "child_process.hpp"
#include "rank_observer.hpp"

#include <troupe/link.hpp>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace troupe::detail {

/// What became of a rank's process.
struct ProcessEnded {
  Outcome start{};                    ///< not ok: it never ran
  Outcome link{};                     ///< how its link ended
  ChildStatus status{};
  std::vector<std::string> last_lines{};
  std::optional<int> places{};        ///< it had none: so many ranks would have had one
};

struct ProcessHandlers {
  std::function<void(LinkMessage)> arrived;
  std::function<void()> opened{};  ///< the process runs and can be a rank
  /// At most once, the last call: the process is reaped, its link closed and its output read; or its node is lost.
  std::function<void(ProcessEnded)> ended;
};

/// A process of this program that can be a rank, one attempt after another, and the way to it. Threads: any.
class RankProcess {
 public:
  virtual ~RankProcess() = default;
  /// Not ok: the message is too long for the link.
  [[nodiscard]] virtual Outcome send(const LinkMessage& message) = 0;
  /// Calls back, on another thread, with the last lines that it has printed so far.
  virtual void read_output(std::function<void(std::vector<std::string>)> done) = 0;
  /// Ends it when it has read everything.
  virtual void finish() = 0;
  virtual void kill() noexcept = 0;
  [[nodiscard]] virtual std::shared_ptr<RankObserver> observer() = 0;
  /// Where it runs; empty: on this host, or not known yet.
  [[nodiscard]] virtual std::string node() const { return {}; }
};

/// The processes of a run's ranks, wherever they are: started when a rank needs one, kept from a failed attempt to the next, or kept
/// ready; and where the ranks of an attempt meet. What is left of them when it is destroyed is ended.
///
/// Threads: any. No call blocks.
class RankProcesses {
 public:
  virtual ~RankProcesses() = default;
  /// Where the ranks of an attempt meet. Throws Failure{StartFailed} when limits do not allow so many processes.
  virtual void begin_attempt(const StartGroup& order) = 0;
  /// A process for a rank of this attempt, with its seat: the one that was this rank, a spare one, or a new one. Returns at once.
  /// Handlers are called on another thread. Send it its RunRank next.
  [[nodiscard]] virtual std::shared_ptr<RankProcess> take(int rank, ProcessHandlers handlers) = 0;
  /// Keeps a process whose train function has ended. Its handlers are not called any more.
  virtual void give_back(const std::shared_ptr<RankProcess>& process) = 0;
  /// Frees every rank that waits in a collective, within 100 ms. The first reason stays; of another attempt: nothing.
  virtual void abort(Attempt attempt, const std::string& reason) noexcept = 0;
  /// Nobody meets there any more.
  virtual void end_attempt(Attempt attempt) noexcept = 0;
  /// As RankPlacer's.
  [[nodiscard]] virtual bool is_preparing() const { return false; }
  /// Starts processes until so many are ready for any rank.
  virtual void keep_spares(int count) = 0;
  /// Tries whether so many more ranks could run, and says how many can, and why not more. Those places stay for the next attempt.
  /// Throws Failure{StartFailed} when limits do not allow so many.
  virtual void find_places(int count, std::function<void(int found, const std::string& why)> done) = 0;
  /// Ends all processes that wait: the next attempt has new ones.
  virtual void start_anew() = 0;
};

}  // namespace troupe::detail

#pragma once

#include "beats.hpp"

#include <troupe/rank_watch.hpp>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace troupe {

struct GroupState;

/// What a WorkerGroup knows of its ranks' progress, and what it does about silence: it asks a silent rank for its stacks, ends it,
/// and with it the attempt, as DeadlinePassed that names it. Stragglers become warnings. Part of GroupState.
class GroupWatch {
 public:
  explicit GroupWatch(GroupState& group) : group_(group) {}

  void begin();                ///< the attempt's order is there
  void started(int rank);
  void ended(int rank);
  void beat(const Beat& news);
  void look();
  void stacks_told(int rank, const std::string& text);
  void stacks_overdue();

  /// The latest of a rank; nothing: none has come.
  [[nodiscard]] std::optional<RankBeat> last_beat(int rank) const;

  /// Adds to the cause of the attempt's end what the other ranks were at, and which of them failed by themselves.
  void explain(GroupEnded& news, const std::vector<RunError>& errors) const;

 private:
  /// Each rank's state at its last beat, in words.
  [[nodiscard]] std::string standing() const;
  void blame(const std::string& stacks);

  GroupState& group_;
  RankWatch silence_;
  StragglerWatch pace_;
  std::map<int, RankBeat> last_;
  std::optional<Suspicion> suspect_;  // while its stacks are awaited
  std::uint64_t suspects_progress_ = 0;
};

}  // namespace troupe

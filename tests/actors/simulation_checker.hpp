#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "simulation_rank.hpp"
#include "simulation_storage.hpp"
#include "simulation_world.hpp"

namespace troupe {
struct TrainerState;
}

namespace troupe::sim {

/// What is known of a run over all its drivers.
struct Ledger {
  std::set<std::uint64_t> acknowledged;    ///< told to listeners, and not removed by the retention rule
  std::set<std::uint64_t> told;            ///< ever acknowledged
  std::set<std::uint64_t> committed_once;  ///< of which a commit was begun
  std::set<std::uint64_t> doomed;          ///< removed by the retention rule
  std::vector<CheckpointRecord> records;   ///< committed, without the doomed
};

/// Watches every message of a driver and says what must not be. The first violation stays.
class Checker {
 public:
  Checker(World& world, Disk& disk, Stage& stage, Ledger& ledger, const ScalingConfig& scaling, const RunConfig& run, bool faulty_disk);

  [[nodiscard]] DiskNews disk_news();
  void before(const Delivery& delivery);
  void after();
  void violate(const std::string& what);
  /// From now on nobody is owed anything.
  void note_kill() { killed_ = true; }
  [[nodiscard]] const std::optional<std::string>& violation() const { return violation_; }

  // ---- what a listener hears
  void heard(const RunStarted& news);
  void heard(const ReportArrived& news);
  void heard(const CheckpointCommitted& news);
  void heard(const CheckpointFailed& news);
  void heard(const RunWarning& news);
  void heard(const RunEnded& news);
  [[nodiscard]] const std::optional<Result>& result() const { return result_; }
  [[nodiscard]] Attempt attempt() const { return attempt_; }
  [[nodiscard]] int num_attempts() const { return num_attempts_; }
  [[nodiscard]] int num_growths() const { return num_growths_; }

 private:
  using Key = std::pair<Attempt, int>;  // of a rank
  struct Report {
    Attempt attempt = 0;
    int rank = 0;
    std::uint64_t index = 0;
    bool operator==(const Report&) const = default;
  };
  void group_gets(const Delivery& delivery);
  void trainer_gets(const Delivery& delivery);
  void check_resume(const StartGroup& order);
  void check_size(const StartGroup& order);
  void check_growths_failure(const Delivery& delivery, const TrainerState& trainer);
  void rank_ended(const Key& rank, bool returned);
  void group_began(const StartGroup& order);
  void group_ended(const GroupEnded& news);
  [[nodiscard]] bool is_complete() const;
  void check_commit(const CompleteCheckpoint& checkpoint);
  void check_disk();
  void check_result(const Result& result);
  void listener_alive(const char* news);
  [[nodiscard]] static std::string name_of(const Report& report);

  World& world_;
  Disk& disk_;
  Stage& stage_;
  Ledger& ledger_;
  const ScalingConfig scaling_;
  const RunConfig run_;
  const bool faulty_disk_;
  const std::vector<ReportRecord> loaded_;  // reports of earlier drivers
  const std::set<std::uint64_t> found_;     // checkpoints of earlier drivers
  std::optional<std::string> violation_;

  Attempt attempt_ = 0;
  int num_attempts_ = 0, world_size_ = 0, num_growths_ = 0;
  int places_found_ = 0;      // in the attempt that has ended, beside its ranks
  int grew_from_ = 0;         // the ranks before the last attempt, when it had more by itself
  bool resized_ = false;      // somebody asked for another size since the last attempt began
  int resized_to_ = 0;        // the last one that may be
  std::size_t failures_ = 0;  // that the Trainer had counted when the last attempt ended
  bool grown_in_vain_ = false;
  bool ended_well_ = false;  // the last attempt
  std::set<Attempt> groups_ended_;
  std::map<Key, int> ranks_ended_, reports_seen_;
  std::map<Key, std::uint64_t> ranks_returned_;  // with their should_stop() calls
  std::vector<Report> forwarded_;         // what the groups got
  std::vector<ReportRecord> arrived_;     // what the listener got
  std::map<Key, std::uint64_t> last_index_;
  std::set<std::uint64_t> committed_here_;
  int warnings_ = 0;
  bool stop_counts_ = false, preemption_counts_ = false, killed_ = false;
  bool disk_may_have_changed_ = false;
  std::uint64_t checked_changes_ = 0;
  std::optional<Result> result_;
};

}  // namespace troupe::sim

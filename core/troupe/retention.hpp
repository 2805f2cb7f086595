#pragma once

#include <troupe/result.hpp>
#include <troupe/run_options.hpp>

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

// Which checkpoint is best, which may go, and when one is complete. Plain functions: no files are touched.

namespace troupe {

/// The best of `records`: the highest (or lowest) score, the newest among equals; the newest when no score attribute
/// is set. A record without a score, or whose score is NaN, is worse than any that has one, in either order.
[[nodiscard]] const CheckpointRecord* best_checkpoint(const std::vector<CheckpointRecord>& records,
                                                      const CheckpointConfig& config);

/// `records` from the worst to the best, by the same rule.
[[nodiscard]] std::vector<CheckpointRecord> worst_to_best(std::vector<CheckpointRecord> records, const CheckpointConfig& config);

/// Indices of the records to delete so that the `num_to_keep` best stay. The latest always stays, in addition.
/// @param records oldest first.
[[nodiscard]] std::vector<std::uint64_t> checkpoints_to_delete(const std::vector<CheckpointRecord>& records,
                                                               const CheckpointConfig& config);

/// A checkpoint whose writers have all reported.
struct CompleteCheckpoint {
  std::uint64_t index = 0;
  Metrics metrics;                       ///< of the lowest rank that wrote
  std::map<int, std::string> directories;  ///< by rank
};

/// Collects what several ranks report for one checkpoint: their parts belong together when their reports have the same index.
class CheckpointAssembly {
 public:
  using Time = std::chrono::steady_clock::time_point;

  /// Of an attempt with so many ranks, each of which reports its indices in order. Forgets what was.
  void begin(int world_size);
  /// Adds one rank's directory; returns the checkpoint when it was the last one missing. Throws
  /// Failure{InvalidArgument} when ranks disagree on `num_writers`, one reports an index twice, or too few are left that could.
  std::optional<CompleteCheckpoint> add(int rank, std::uint64_t index, const Metrics& metrics,
                                        const std::string& directory, int num_writers, Time now = {});
  /// The same of a part that is still being written: it counts once `written` is called. Throws as `add`.
  void announce(int rank, std::uint64_t index, const Metrics& metrics, const std::string& directory, int num_writers, Time now = {});
  /// A rank's report without a checkpoint. Throws Failure{InvalidArgument} when one that others have begun can therefore not become whole.
  void pass(int rank, std::uint64_t index);
  std::optional<CompleteCheckpoint> written(int rank, std::uint64_t index);
  /// Gives up the checkpoint of a report: parts that still come are dropped. What came so far; nothing when that was done before.
  std::optional<CompleteCheckpoint> give_up(std::uint64_t index);
  /// "checkpoint of report 3: 1 of 2 writers came (rank 0)", a line for each that is not complete.
  [[nodiscard]] std::vector<std::string> incomplete() const;
  /// When the oldest that still lacks a report was begun; nothing: none does.
  [[nodiscard]] std::optional<Time> oldest_incomplete() const;
  /// Of what was begun before `time` and still lacks a report: what, and whose. Empty: there is none.
  [[nodiscard]] std::string overdue(Time time) const;

 private:
  struct Announced {
    Metrics metrics;
    std::string directory;
  };
  struct Pending {
    CompleteCheckpoint checkpoint;
    int num_writers = 1;
    std::map<int, Announced> announced;  ///< by rank
    Time began;
    int num_passed = 0;  ///< ranks that are past its report and had no checkpoint there
    [[nodiscard]] int num_came() const { return static_cast<int>(checkpoint.directories.size() + announced.size()); }
    [[nodiscard]] bool has(int rank) const { return checkpoint.directories.contains(rank) || announced.contains(rank); }
  };
  Pending& expect(int rank, std::uint64_t index, int num_writers, Time now);
  /// A rank has sent its reports up to `end`, excluded.
  void advance(int rank, std::uint64_t end);
  void check_still_possible(const Pending& pending) const;
  [[nodiscard]] std::string describe(const Pending& pending) const;
  /// That have not reported so far, and may.
  [[nodiscard]] std::set<int> still_to_come(const Pending& pending) const;
  std::map<std::uint64_t, Pending> pending_;
  std::set<std::uint64_t> given_up_;
  std::vector<std::uint64_t> next_;  ///< report of each rank
};

}  // namespace troupe

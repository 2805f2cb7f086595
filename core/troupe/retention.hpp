#pragma once

#include <troupe/result.hpp>
#include <troupe/run_options.hpp>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

// Which checkpoint is best, which may go, and when one is complete. Plain functions: no files are touched.

namespace troupe {

/// The best of `records`: the highest (or lowest) score, the newest among equals; the newest when no score attribute
/// is set. A record without a score, or whose score is NaN, is worse than any that has one, in either order.
[[nodiscard]] const CheckpointRecord* best_checkpoint(const std::vector<CheckpointRecord>& records,
                                                      const CheckpointConfig& config);

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

/// Collects what several ranks report for one checkpoint.
class CheckpointAssembly {
 public:
  /// Adds one rank's directory; returns the checkpoint when it was the last one missing. Throws
  /// Failure{InvalidArgument} when ranks disagree on `num_writers` or one reports an index twice.
  std::optional<CompleteCheckpoint> add(int rank, std::uint64_t index, const Metrics& metrics,
                                        const std::string& directory, int num_writers);
  /// "checkpoint of report 3: 1 of 2 writers came (rank 0)", a line for each that is not complete.
  [[nodiscard]] std::vector<std::string> incomplete() const;
  void clear() { pending_.clear(); }

 private:
  struct Pending {
    CompleteCheckpoint checkpoint;
    int num_writers = 1;
  };
  std::map<std::uint64_t, Pending> pending_;
};

}  // namespace troupe

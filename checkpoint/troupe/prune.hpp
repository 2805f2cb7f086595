#pragma once

#include <troupe/retention.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace troupe {

struct Pruned {
  struct Gone {
    CheckpointRecord record;
    std::uint64_t bytes = 0;
  };
  std::vector<Gone> removed;  ///< or that would be, oldest first
  std::uint64_t num_kept = 0;
  std::vector<std::string> warnings;  ///< of damaged checkpoints, which are neither counted nor removed
};

/// Applies a retention rule to a run that nobody drives. A crash half-way leaves each checkpoint whole or gone.
/// @param look called with the checkpoints, oldest first, before anything is removed; may throw.
/// Throws Failure{AlreadyExists} when a driver has the run, {NotFound} when there is none, {StorageUnavailable}.
Pruned prune_run(const std::filesystem::path& run, const CheckpointConfig& config, bool dry_run,
                 const std::function<void(const std::vector<CheckpointRecord>&)>& look = {});

}  // namespace troupe

#pragma once

#include "head_run.hpp"

#include <troupe/run_storage.hpp>

#include <memory>

namespace troupe::detail {

/// A run's directory on the head's host, where some nodes may have disks of their own: what their ranks wrote is brought here before a checkpoint is
/// committed, so that all of it is here whole; and they keep it as their part, from which what is lost here is brought back.
class StorageOnNodes final : public RunStorage {
 public:
  StorageOnNodes(const RunConfig& run, const std::function<void(const std::filesystem::path&)>& before_reading, std::shared_ptr<Head> head,
                 std::shared_ptr<HeadRun> processes);

  /// As RunStorage's, with Failure{StorageUnavailable} when a node does not give what it has.
  CheckpointRecord commit(const CompleteCheckpoint& checkpoint) override;
  void discard(const CompleteCheckpoint& checkpoint) override;
  void remove(std::uint64_t index) override;

 private:
  const std::shared_ptr<Head> head_;  // outlives its runs
  const std::shared_ptr<HeadRun> run_;
};

}  // namespace troupe::detail

#pragma once

#include <troupe/caf_types.hpp>
#include <troupe/run_storage.hpp>

#include <caf/actor.hpp>
#include <caf/fwd.hpp>

namespace troupe {

// ---- Trainer to CheckpointKeeper, all answered in order --------------------------------------------------------

/// The first message. Answered by RunOpened or StorageFailed.
struct OpenRun {
  RunConfig run;
};

/// Add to reports.jsonl. No answer.
struct KeepReports {
  std::vector<ReportRecord> reports;
};

/// Answered by CheckpointKept, by CheckpointNotKept when the disk refuses, or by StorageFailed.
struct CommitCheckpoint {
  CompleteCheckpoint checkpoint;
};

/// Remove what a checkpoint that was given up has left in the run's staging directory. No answer.
struct DiscardCheckpoint {
  CompleteCheckpoint checkpoint;
};

/// Answered by RunSettled when everything before it is on its way to the disk.
struct SettleRun {};

/// Write result.json, give up the lock and quit. Answered by RunFinished or StorageFailed.
struct FinishRun {
  Result result;
};

// ---- CheckpointKeeper to Trainer --------------------------------------------------------------------------------

struct RunOpened {
  std::string name;
  std::string path;
  RunContents contents;
};

/// `checkpoint` is committed; those in `removed` were deleted by the retention rule.
struct CheckpointKept {
  CheckpointRecord checkpoint;
  std::vector<std::uint64_t> removed;
};

/// The checkpoint could not be written; nothing of it is left, and those before it are intact.
struct CheckpointNotKept {
  std::uint64_t index = 0;
  Errc code = Errc::StorageUnavailable;
  std::string text;
};

struct RunSettled {};
struct RunFinished {};

struct StorageFailed {
  Errc code = Errc::StorageUnavailable;
  std::string text;
};

/// Spawns the actor that owns a run's directory: all disk work, on a thread of its own, in order of arrival.
/// It links itself to `trainer` and quits when that ends.
[[nodiscard]] caf::actor spawn_checkpoint_keeper(caf::actor_system& system, caf::actor trainer);

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::OpenRun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::KeepReports)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CommitCheckpoint)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::DiscardCheckpoint)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointNotKept)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::SettleRun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::FinishRun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunOpened)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointKept)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunSettled)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunFinished)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StorageFailed)

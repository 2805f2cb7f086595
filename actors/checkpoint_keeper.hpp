#pragma once

#include <troupe/caf_types.hpp>
#include <troupe/failure_policy.hpp>
#include <troupe/object_store.hpp>
#include <troupe/run_storage.hpp>

#include <caf/actor.hpp>
#include <caf/fwd.hpp>

#include <functional>
#include <memory>

namespace troupe {

// ---- Trainer to CheckpointKeeper, all answered in order --------------------------------------------------------

/// The first message. Answered by RunOpened or StorageFailed.
struct OpenRun {
  RunConfig run;
};

/// Add a line to journal.jsonl. No answer.
struct KeepEvent {
  std::string json;
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

/// Write `name`.md and `name`.json into the run's directory. No answer; when the disk refuses, a RunWarning.
struct KeepPostMortem {
  std::string name;
  std::string markdown, json;
};

/// Answered by RunSettled when everything before it is on its way to the disk (and, under Sync, in the store).
struct SettleRun {};

/// Write result.json, wait for uploads, give up the lock and quit. Answered by RunFinished or StorageFailed.
struct FinishRun {
  Result result;
  bool keep_snapshot = false;  ///< for the run's next driver
};

/// After FinishRun: wait for uploads no longer. RunFinished follows. No effect before.
struct GiveUpUploads {};

// ---- CheckpointKeeper to Trainer --------------------------------------------------------------------------------

struct RunOpened {
  std::string name;
  std::string path;
  RunContents contents;
  SnapshotOptions snapshots;          ///< where ranks may keep copies of the state in memory
  std::optional<StateCopy> snapshot;  ///< what a driver before left there
};

/// `checkpoint` is committed (and in the store, under CheckpointUploadMode::Sync); those in `removed` were deleted by the retention rule.
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

struct RunSettled {
  std::optional<StateCopy> snapshot;  ///< the newest whole one
};
struct RunFinished {};

struct StorageFailed {
  Errc code = Errc::StorageUnavailable;
  std::string text;
};

/// Opens the object store of a run's `storage_path`, with retries; `warn` is called, on any thread, when one lasts.
using OpenStore = std::function<std::unique_ptr<ObjectStore>(const RunConfig& run, std::function<void(const std::string&)> warn)>;
[[nodiscard]] std::unique_ptr<ObjectStore> open_run_store(const RunConfig& run, std::function<void(const std::string&)> warn);

/// Spawns the actor that owns a run's directory: all disk work, on a thread of its own, in order of arrival. With an s3://
/// storage_path it also directs a CheckpointUploader, whose uploads run beside commits (docs/storage.md).
/// It links itself to `trainer` and quits when that ends.
[[nodiscard]] caf::actor spawn_checkpoint_keeper(caf::actor_system& system, caf::actor trainer);
[[nodiscard]] caf::actor spawn_checkpoint_keeper_with(caf::actor_system& system, caf::actor trainer, OpenStore open_store);

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::OpenRun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::KeepReports)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::KeepEvent)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CommitCheckpoint)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::DiscardCheckpoint)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointNotKept)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::KeepPostMortem)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::SettleRun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::FinishRun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::GiveUpUploads)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunOpened)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointKept)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunSettled)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunFinished)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StorageFailed)

#pragma once

#include <troupe/placement.hpp>
#include <troupe/storage_path.hpp>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

namespace troupe {

/// Where ranks live: threads of this process, processes of this host, or processes of a cluster's nodes (TrainerOptions::cluster). On nodes
/// no copies of the training state are kept in memory: a restart goes on from the newest checkpoint.
enum class Placement : std::uint8_t { Threads, Processes, Nodes };
/// "threads", "processes", "processes of nodes".
[[nodiscard]] const char* name(Placement placement) noexcept;

/// How many ranks, and on what. Field names as in Ray Train.
struct ScalingConfig {
  int num_workers = 1;                       ///< ranks; 1 to 16384, of which at most 4096 on one host
  bool use_gpu = false;                      ///< one GPU a rank
  Placement placement = Placement::Threads;
  int cpus_per_worker = 1;                   ///< intra-op threads of each rank
  bool pin_threads = false;                  ///< pin each rank's thread to its own cores
  int min_workers = 0;                       ///< elastic: go on with as few as this when ranks cannot be replaced; 0: num_workers
  int spare_workers = 0;                     ///< processes kept ready to take the place of a lost one; 0 to num_workers
  /// Elastic, with fewer ranks than wanted: after so long places for the missing ones are looked for, and taken at a step boundary; 0: never.
  std::chrono::milliseconds grow_after{60'000};
  // With Placement::Nodes:
  Resources resources_per_worker{};  ///< what a node must have free for a rank; no cpus: cpus_per_worker; use_gpu without gpus: 1
  PlacementStrategy placement_strategy = PlacementStrategy::Pack;
  Labels worker_labels{};            ///< that a rank's node must have
};

/// What to do with a run of the same name in the same storage.
enum class Resume : std::uint8_t { Auto, Never, Must };

struct FailureConfig {
  int max_failures = 0;  ///< restarts after a lost rank; -1: no limit. Preemptions do not count
  std::chrono::milliseconds failure_window{0};  ///< only failures of the last so many ms count; 0: all of the run
  int crash_loop_limit = 5;  ///< gives up after so many failures in a row without one completed step or report between them
  /// With max_failures: a copy of the training state in shared memory after every so many updates, from which a restart goes on; 0: never.
  int snapshot_every = 1;
  std::filesystem::path snapshot_path = "/dev/shm";  ///< a file system in memory; takes twice the state's bytes
  int max_rank_failures = -1;   ///< of one rank within the window, after which all ranks are started anew; -1: no such limit
  int max_group_failures = -1;  ///< times within the window that all are, after which the run ends or, elastic, goes on without one; -1: no limit
};

/// Where a rank keeps copies of the training state that outlive it, and how often it takes one.
struct SnapshotOptions {
  std::filesystem::path directory;  ///< of this run, in memory, made; all its ranks share it
  int every = 0;                    ///< updates; 0: none is taken
};

/// When a committed checkpoint goes to the object store of `RunConfig::storage_path`. Names as in Ray Train.
enum class CheckpointUploadMode : std::uint8_t {
  Sync,      ///< it counts as committed when it is in the store; a failed upload ends the run
  Async,     ///< beside training, one at a time; a failed upload is a warning
  NoUpload,  ///< checkpoints stay in the staging directory; reports and the result are uploaded
};

/// What a run on a cluster's nodes does with a node that does not see its directory.
enum class NodeStorage : std::uint8_t {
  Auto,    ///< the node keeps its part of each checkpoint on its own disk, at the same path; the whole is on the head's
  Shared,  ///< storage must be shared: an error that names node and path
};

struct CheckpointConfig {
  std::optional<int> num_to_keep;                        ///< nothing: keep all; at least 1
  std::optional<std::string> checkpoint_score_attribute; ///< a metric's name; nothing: newest is best
  std::string checkpoint_score_order = "max";            ///< "max" or "min"
  CheckpointUploadMode checkpoint_upload_mode = CheckpointUploadMode::Async;
};

struct RunConfig {
  std::string name;                                ///< empty: troupe_run-<date>_<time>-<pid>
  StoragePath storage_path = "results";            ///< the run's directory is storage_path/name; or s3://bucket/prefix
  std::filesystem::path staging_path;              ///< of an s3:// run on this host; empty: $TMPDIR/troupe-<user id>/bucket/prefix
  NodeStorage node_storage = NodeStorage::Auto;    ///< with Placement::Nodes
  Resume resume = Resume::Auto;
  FailureConfig failure;
  CheckpointConfig checkpoint;
  std::chrono::milliseconds start_timeout{60'000};       ///< from fit() until every rank runs
  std::chrono::milliseconds collective_timeout{600'000}; ///< longest wait of a collective for a peer
  std::chrono::milliseconds step_timeout{600'000};       ///< longest time in which a rank's training thread may show no progress
  std::chrono::milliseconds stop_grace{5'000};           ///< from a stop request until ranks are ended by force
  std::chrono::milliseconds upload_timeout{600'000};     ///< how long an upload is tried again; and the longest wait for uploads at the end
  std::chrono::milliseconds time_limit{0};               ///< then the run is stopped as preempted, at a step boundary; 0: none
  bool progress = true;                            ///< a progress line on stderr
  std::map<std::string, std::string> worker_env;   ///< extra environment of process ranks
  std::string chaos;                               ///< faults to inject, for tests (docs/supervision.md); empty: none
};

/// Throws Failure{InvalidConfig} naming the field, its value and the range.
void validate(const ScalingConfig& scaling);
/// What a rank takes of its node.
[[nodiscard]] Resources resources_of_rank(const ScalingConfig& scaling);
void validate(const RunConfig& run);

}  // namespace troupe

#pragma once

#include <troupe/checkpoint_ref.hpp>
#include <troupe/communicator.hpp>
#include <troupe/data_config.hpp>
#include <troupe/host_group.hpp>
#include <troupe/metrics.hpp>
#include <troupe/result.hpp>
#include <troupe/run_options.hpp>
#include <troupe/train_context.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

// The control plane's messages. Orders are verbs, news is past. Each says who sends it, to whom, and what comes back.
// Every message of an attempt carries its number; one of an older attempt is dropped and counted.
// Between processes the same structs travel in the link's frames (actors/troupe/link.hpp).

namespace troupe {

using Attempt = std::uint64_t;

// ---- WorkerGroup to Rank ------------------------------------------------------------------------------------

/// Begin: run this train function. Answered by RankStarted, then Reported…, then RankDone or RankLost.
struct RunRank {
  Attempt attempt = 0;
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  int node_rank = 0;
  std::string function;               ///< name in the program's list of train functions
  std::string config_json;            ///< train_loop_config
  std::string run_name;
  std::string run_directory;          ///< absolute; checkpoint_dir() makes directories below it
  std::optional<std::string> resume_checkpoint;  ///< absolute path for get_checkpoint()
  int previous_world_size = 0;                   ///< of the attempt that it comes from; 0: none
  std::uint64_t first_report_index = 0;          ///< so that report indices go on after a resume
  ScalingConfig scaling;
  std::chrono::milliseconds barrier_timeout{600'000};
  SnapshotOptions snapshots;
  std::string chaos;  ///< faults to inject
  DataConfig data;    ///< of the program's data sets
  int gpu = -1;       ///< its GPU's number on its host; -1: local_rank
  HostPlan hosts{};   ///< ranks are on several hosts: answered by SeatOpened first; empty: on one
};

/// Where the ranks at the rank's place on every host wait, by host; empty where a host has fewer ranks. The rank takes its seat now.
struct SeatsKnown {
  Attempt attempt = 0;
  std::vector<std::string> endpoints;
};

/// Asks how many `should_stop()` calls the rank has passed, and holds its next call. Answered by StopCounted.
struct CountForStop {
  Attempt attempt = 0;
};

/// Releases held calls: `should_stop()` is true from call number `calls` + 1 on (the first call is number 1).
struct StopAfter {
  Attempt attempt = 0;
  std::uint64_t calls = 0;
  bool is_resize = false;  ///< another attempt follows: processes of ranks that stop are kept for it. Does not travel to them
};

/// All ranks reached barrier or broadcast number `sequence`; `bytes` are rank 0's. Or it failed: then `error` is not Ok
/// and `text` names who did not come.
struct BarrierPassed {
  Attempt attempt = 0;
  std::uint64_t sequence = 0;
  std::string bytes;
  Errc error = Errc::Ok;
  std::string text;
};

/// End now: the collective group is already aborted; the worker gets Failure{Aborted, reason} at its next call.
/// A process that has not ended after the grace period is killed by its proxy, with `at_once` immediately.
struct AbortRank {
  Attempt attempt = 0;
  std::string reason;
  bool at_once = false;
};

// ---- Rank to WorkerGroup ------------------------------------------------------------------------------------

/// Of a group on several hosts: where the rank waits for its peers. Answered by SeatsKnown when all have told theirs.
struct SeatOpened {
  Attempt attempt = 0;
  int rank = 0;
  int host = 0, place = 0;  ///< where it is, below the number of ranks
  std::string endpoint;     ///< "10.0.0.2:43210"
};

/// The train function is about to run its first line.
struct RankStarted {
  Attempt attempt = 0;
  int rank = 0;
  std::int64_t pid = 0;
};

/// The train function called report(). Forwarded to the Trainer.
struct Reported {
  Attempt attempt = 0;
  int rank = 0;
  std::uint64_t index = 0;
  Metrics metrics;
  std::optional<std::string> checkpoint;  ///< absolute directory
  int num_writers = 1;
  bool pending = false;  ///< the rank still writes its part; CheckpointWritten follows
};

/// The rank's part of the checkpoint that it reported as pending is durable, or (error is not Ok) will never be.
/// Forwarded to the Trainer.
struct CheckpointWritten {
  Attempt attempt = 0;
  int rank = 0;
  std::uint64_t index = 0;  ///< of the report
  Errc error = Errc::Ok;
  std::string text;
};

/// The train function called progress(). Forwarded to the Trainer; may be dropped anywhere.
struct Progressed {
  Attempt attempt = 0;
  int rank = 0;
  Progress progress;
};

/// The rank waits in barrier() or broadcast_from_rank_zero() number `sequence` (they share one count).
/// Answered by BarrierPassed when all have come.
struct BarrierReached {
  Attempt attempt = 0;
  int rank = 0;
  std::uint64_t sequence = 0;
  std::string bytes;  ///< rank 0's
};

struct StopCounted {
  Attempt attempt = 0;
  int rank = 0;
  std::uint64_t calls = 0;
};

/// The train function returned.
struct RankDone {
  Attempt attempt = 0;
  int rank = 0;
  std::uint64_t calls = 0;                      ///< of should_stop(), in all
  std::vector<std::string> unused_config_keys;  ///< keys of config_json that this rank never read
};

/// The rank is no more, or its train function threw. `error.rank` is set.
struct RankLost {
  Attempt attempt = 0;
  int rank = 0;
  RunError error;
  bool is_reusable = false;  ///< its process is as good as new: it can be a rank of the next attempt
  std::optional<int> places{};  ///< it has none: so many ranks would have had one. Does not travel
};

// ---- Trainer to WorkerGroup, and back -----------------------------------------------------------------------

/// Starts all ranks of an attempt. Answered by GroupStarted, then Reported…, then GroupEnded (exactly one).
struct StartGroup {
  Attempt attempt = 0;
  std::string function;
  std::string config_json;
  std::string run_name;
  std::string run_directory;
  std::optional<std::string> resume_checkpoint;
  int previous_world_size = 0;
  std::uint64_t first_report_index = 0;
  ScalingConfig scaling;
  RunConfig run;
  SnapshotOptions snapshots;
  DataConfig data;
  bool is_fresh = false;  ///< nothing of earlier attempts is used again: no process, no kept object
};

/// Soft stop at an agreed step boundary. No answer; GroupEnded follows.
struct StopGroup {
  Attempt attempt = 0;
  bool is_resize = false;   ///< another attempt follows, with another number of ranks
  bool is_patient = false;  ///< ranks that come to no boundary are not ended by force: the attempt goes on until they do
};

/// Looks for places where more ranks could run, beside those that do. Answered by PlacesFound.
struct FindPlaces {
  Attempt attempt = 0;
  int count = 1;
};

/// Hard stop: abort collectives, end every rank. GroupEnded follows.
struct AbortGroup {
  Attempt attempt = 0;
  std::string reason;
  bool at_once = false;  ///< no grace: processes are killed, threads get two seconds to reach their next call
};

/// Every rank runs its train function.
struct GroupStarted {
  Attempt attempt = 0;
  std::vector<std::int64_t> pids{};  ///< of the ranks' processes, by rank
};

/// So many more ranks could start now; of processes they have, and wait.
struct PlacesFound {
  Attempt attempt = 0;
  int count = 0;
  std::string text;  ///< why not more
};

/// Every rank has ended and nothing of the attempt is left: no process, socket, thread or shared memory.
struct GroupEnded {
  Attempt attempt = 0;
  std::optional<RunError> error;  ///< the first rank's that failed by itself, not those that were aborted after it
  std::vector<std::string> unused_config_keys;  ///< that no rank read; empty unless every rank returned
  std::vector<std::string> other_errors;        ///< of ranks that failed by themselves later: "rank 2: RankKilled: …"
  bool was_stopped = false;                     ///< some rank's should_stop() was true: its train function was not done
  std::optional<int> places{};                  ///< some ranks could not be started: so many could, as far as that is known
};

// ---- users to Trainer, Trainer to listeners -----------------------------------------------------------------

/// Anyone to the Trainer: soft stop (finish the step). The second one is a hard stop.
struct StopRun {
  std::string reason;
  bool is_preemption = false;  ///< the machine is needed otherwise: the run is to be started again and go on
};

/// Anyone to the Trainer of an elastic run: go on with so many ranks, from min_workers to num_workers, from the next step
/// boundary on. Ranks see it as a stop; then an attempt of the new size begins.
struct ResizeRun {
  int num_workers = 1;
};

/// Anyone to the Trainer: go on with the same number of ranks in other places, from the next step boundary on; as when a node drains.
struct MoveRanks {
  std::string reason;
};

/// Trainer to listeners: the run's directory is made, attempt `attempt` begins.
struct RunStarted {
  Attempt attempt = 0;
  std::string run_name;
  std::string path;
  std::vector<std::string> warnings;  ///< of damaged checkpoints that were left aside, and why there is another attempt
  int world_size = 1;
  std::string resumes_from{};         ///< checkpoint or snapshot; empty: from the beginning
};

/// Trainer to listeners: a report of one rank, in order of arrival.
struct ReportArrived {
  ReportRecord report;
};

/// Trainer to listeners: a checkpoint is committed.
struct CheckpointCommitted {
  CheckpointRecord checkpoint;
};

/// Trainer to listeners: the checkpoint of report `index` could not be written; those before it are intact, and training
/// goes on.
struct CheckpointFailed {
  std::uint64_t index = 0;
  Errc error = Errc::StorageUnavailable;
  std::string text;
};

/// Trainer to listeners: a checkpoint is whole in the object store.
struct CheckpointUploaded {
  std::uint64_t index = 0;
  std::string url;
};

/// Trainer to listeners: something went wrong that does not end the run, as a failed upload.
struct RunWarning {
  std::string text;
};

/// Trainer to listeners: the run is over. The last message.
struct RunEnded {
  Result result;
  std::vector<std::string> unused_config_keys;  ///< that no rank of the last attempt read
};

}  // namespace troupe

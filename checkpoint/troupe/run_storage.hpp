#pragma once

#include <troupe/result.hpp>
#include <troupe/retention.hpp>
#include <troupe/run_options.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

/// What a run's directory holds.
///
///     reports.jsonl        every report of every rank, one JSON object a line, only ever appended to
///     checkpoint_000002/   a committed checkpoint: the ranks' files, and manifest.troupe that lists them
///     journal.jsonl        what the driver did: attempts, processes, failures, decisions; only ever appended to
///     result.json          the Result, once the run has ended
///     .lock                held by the driver while it runs
///     .staging/            what is not committed yet; emptied when a run begins
struct RunContents {
  std::vector<ReportRecord> history;
  std::vector<CheckpointRecord> checkpoints;  ///< committed ones, oldest first
  std::vector<std::string> warnings;          ///< damaged checkpoints, which are left aside
  std::uint64_t next_report_index = 0;
  std::uint64_t next_attempt = 1;
};

/// Reads a run, also one that runs or broke off; a torn last line is ignored. Of checkpoints the manifests, the files' sizes and the
/// ranks' records are verified; tensors' bytes are when they are loaded. Throws Failure{NotFound} when there is no run,
/// Failure{FileCorrupt} naming file and line.
[[nodiscard]] RunContents read_run(const std::filesystem::path& directory);

/// "checkpoint_000002": the directory of report 2's checkpoint, in the run's.
[[nodiscard]] std::string checkpoint_name(std::uint64_t index);

/// Where the runs of `run.storage_path` are on this host: that path, or the staging directory of an s3:// path.
/// Throws Failure{StorageUnavailable} when the default staging directory belongs to somebody else.
[[nodiscard]] std::filesystem::path local_storage_path(const RunConfig& run);

/// A run's directory while its driver runs. One object a run; a second one, in any process, is refused.
///
/// Threads: one caller at a time; every call may block on the disk.
/// Errors: throws Failure{StorageUnavailable} naming the path.
class RunStorage {
 public:
  /// Makes or opens storage_path/name (under an s3:// path, name in the staging directory), as `run.resume` says, and clears what a broken run left unfinished.
  /// Throws Failure{AlreadyExists} when another driver has it, or it exists under Resume::Never; Failure{NotFound}
  /// when there is no checkpoint to go on from under Resume::Must.
  /// @param before_reading called with the run's directory once it is locked: what it puts there is found.
  explicit RunStorage(const RunConfig& run, const std::function<void(const std::filesystem::path&)>& before_reading = {});
  virtual ~RunStorage();
  RunStorage(const RunStorage&) = delete;
  RunStorage& operator=(const RunStorage&) = delete;

  /// What was there when the run was opened.
  [[nodiscard]] const RunContents& found() const noexcept { return found_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] std::string name() const { return path_.filename().string(); }
  /// Adds a line to reports.jsonl; it is in the file after `flush`. What `flush` could not write goes with a later one.
  virtual void append(const ReportRecord& record);
  virtual void flush();
  /// Adds a line to journal.jsonl, at once; what the disk refuses goes with a later one, up to 1 MB of it.
  virtual void note(const std::string& json);
  /// Writes a file of the run, whole or not at all.
  virtual void write(const std::string& name, const std::string& text);
  /// Makes one checkpoint of what the writers wrote into one directory, or each into its own (then their files are merged): checks that
  /// the ranges that `write_part` recorded tile every shared file, digests the files that nobody recorded, syncs all that is
  /// not durable yet, writes the manifest, and renames once. Directories below the run's own .staging are moved, others copied.
  /// Throws Failure{InvalidArgument} naming ranks and bytes when parts do not fit together, {AlreadyExists} when two ranks wrote
  /// a file of the same name, {FileNotFound} when a directory is missing or empty. After a throw nothing is committed, and
  /// the directories are to be discarded.
  virtual CheckpointRecord commit(const CompleteCheckpoint& checkpoint);
  /// Removes the writers' directories of a checkpoint that will not be committed, as far as they lie below .staging.
  virtual void discard(const CompleteCheckpoint& checkpoint);
  /// Deletes a committed checkpoint; a crash half-way leaves it whole or gone. After a throw it is there, whole.
  virtual void remove(std::uint64_t index);
  /// Removes what is in .staging: no checkpoint is under way, and what is left there is of ranks that were lost.
  virtual void sweep();
  /// Writes result.json, whole or not at all.
  virtual void finish(const Result& result);

 protected:
  /// For storage that is elsewhere, as a simulated disk: all of the above is then the derived class's.
  RunStorage(std::filesystem::path path, RunContents found);

 private:
  struct Lines;  // reports.jsonl and journal.jsonl
  void lock();

  std::filesystem::path path_;
  RunContents found_;
  std::unique_ptr<Lines> lines_;
  int lock_fd_ = -1;
};

}  // namespace troupe

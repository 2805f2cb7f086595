#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace troupe {

/// One thing to do at the object store.
struct UploadJob {
  enum class Kind : std::uint8_t { Upload, Remove, PutFile, RemoveFile };
  Kind kind = Kind::Upload;
  std::uint64_t index = 0;  ///< of the checkpoint, for Upload and Remove
  std::string file;         ///< of the run, for PutFile and RemoveFile: "reports.jsonl"
  bool operator==(const UploadJob&) const = default;
};

/// What is to be done at a run's store, in which order. A plain state machine: one job is under way at a time.
///
/// The store never has less than before: checkpoints are removed there only after a newer one was uploaded whole.
class UploadQueue {
 public:
  /// A checkpoint was committed on this host: its reports first, then it.
  void add(std::uint64_t index);
  /// A checkpoint that the store has, of an earlier run.
  void know(std::uint64_t index) { stored_.insert(index); }
  void put_file(const std::string& file);
  void remove_file(const std::string& file) { jobs_.push_back({UploadJob::Kind::RemoveFile, 0, file}); }
  /// Retention is done with a checkpoint. True: its directory here may go now; false: it is just being uploaded, and `ended`
  /// will name it.
  [[nodiscard]] bool doom(std::uint64_t index);

  /// The next job, now under way; nothing when there is none, or one is.
  [[nodiscard]] std::optional<UploadJob> next();
  /// The job under way has ended. Returns checkpoints whose directories here may go now.
  std::vector<std::uint64_t> ended(bool ok);

  [[nodiscard]] bool idle() const noexcept { return jobs_.empty() && !under_way_; }
  /// Committed, wanted, and not in the store: the upload failed. `add` them to try again.
  [[nodiscard]] const std::set<std::uint64_t>& failed() const noexcept { return failed_; }
  /// Drops all jobs that are not under way. Returns how many checkpoints were waiting for their upload.
  int give_up();

 private:
  std::deque<UploadJob> jobs_;
  std::vector<std::uint64_t> held_back_;  // removals that wait for a whole upload
  std::optional<UploadJob> under_way_;
  bool doomed_under_way_ = false;
  std::set<std::uint64_t> stored_, failed_;
};

}  // namespace troupe

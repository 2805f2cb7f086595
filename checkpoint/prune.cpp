#include "commit.hpp"
#include "files.hpp"

#include <troupe/prune.hpp>
#include <troupe/records.hpp>
#include <troupe/run_storage.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

namespace troupe {

namespace {

namespace fs = std::filesystem;

/// The run's .lock while nobody drives it.
class RunLock {
 public:
  explicit RunLock(const fs::path& run) : fd_(::open((run / ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    if (fd_ < 0) files::fail("open", run / ".lock", errno);
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
    const int why = errno;
    ::close(fd_);
    if (why != EWOULDBLOCK) files::fail("lock", run / ".lock", why);
    throw Failure{Errc::AlreadyExists, "the run at " + run.string() + " is being driven; wait for its end (it keeps its own rule: CheckpointConfig.num_to_keep)"};
  }
  ~RunLock() { ::close(fd_); }
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_;
};

std::uint64_t bytes_below(const fs::path& directory) {
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator{directory}) {
    if (entry.is_regular_file() && !entry.is_symlink()) bytes += entry.file_size();
  }
  return bytes;
}

// result.json names checkpoints: those that are gone must not be among them.
void forget_in_result(const fs::path& run, const CheckpointConfig& config, const std::vector<std::uint64_t>& gone) {
  if (!fs::exists(run / "result.json")) return;
  auto result = Result::from_path(run);
  std::erase_if(result.checkpoints, [&](const CheckpointRecord& record) { return std::find(gone.begin(), gone.end(), record.index) != gone.end(); });
  result.checkpoint.reset();
  result.best_checkpoint.reset();
  if (!result.checkpoints.empty()) result.checkpoint = result.checkpoints.back();
  if (const auto* best = best_checkpoint(result.checkpoints, config)) result.best_checkpoint = *best;
  files::write_atomically(run / "result.json", to_json(result).dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace

Pruned prune_run(const fs::path& run, const CheckpointConfig& config, bool dry_run, const std::function<void(const std::vector<CheckpointRecord>&)>& look) {
  const RunLock lock{run};
  auto contents = read_run(run);
  if (look) look(contents.checkpoints);
  const auto doomed = checkpoints_to_delete(contents.checkpoints, config);
  Pruned made;
  made.warnings = std::move(contents.warnings);
  made.num_kept = contents.checkpoints.size() - doomed.size();
  for (const auto& record : contents.checkpoints) {
    if (std::find(doomed.begin(), doomed.end(), record.index) == doomed.end()) continue;
    made.removed.push_back({record, bytes_below(record.checkpoint.path())});
  }
  if (dry_run || doomed.empty()) return made;
  forget_in_result(run, config, doomed);
  files::make_directories(run / ".staging");
  for (const auto index : doomed) detail::remove_checkpoint(real_file_system(), run, index);
  return made;
}

}  // namespace troupe

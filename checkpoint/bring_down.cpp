#include "files.hpp"
#include "listing.hpp"

#include <troupe/remote_run.hpp>
#include <troupe/run_storage.hpp>

#include <algorithm>
#include <map>
#include <set>

namespace troupe {

namespace {

namespace fs = std::filesystem;

// The checkpoints in a run's directory that have a manifest: its bytes by index.
std::map<std::uint64_t, std::string> manifests_in(const fs::path& run) {
  std::map<std::uint64_t, std::string> found;
  for (const auto& entry : fs::directory_iterator{run}) {
    const auto manifest = entry.path() / listing_name();
    if (!entry.is_directory() || !entry.path().filename().string().starts_with("checkpoint_") || !fs::exists(manifest)) continue;
    auto text = files::read_all(manifest);
    try {
      found[parse_listing(text, manifest.string()).index] = std::move(text);
    } catch (const Failure&) {
      // Damaged: whoever reads the run says so.
    }
  }
  return found;
}

class BringingDown {
 public:
  BringingDown(RemoteRun& remote, const fs::path& run, const CheckpointConfig& config) : remote_(remote), run_(run), config_(config) {}

  BroughtDown all() {
    auto contents = remote_.read();
    for (const auto& name : contents.leftovers) {
      made_.warnings.push_back(remote_.url() + "/" + name + " is no whole checkpoint (an upload broke off); it is removed");
      remote_.remove_checkpoint(name);
    }
    for (auto& record : contents.checkpoints) record.checkpoint = Checkpoint{run_ / checkpoint_name(record.index)};
    made_.remote = std::move(contents.checkpoints);
    here_ = manifests_in(run_);
    const bool same_history = !contents.has_reports || reports_only_add();
    remove_what_is_not_the_stores(same_history);
    fetch_newest_and_best();
    return std::move(made_);
  }

 private:
  // Whether reports.jsonl here begins with the store's; else it is replaced by that.
  bool reports_only_add() {
    const auto file = run_ / "reports.jsonl";
    const auto theirs = remote_.read_file("reports.jsonl");
    const auto ours = fs::exists(file) ? files::read_all(file) : "";
    if (ours.starts_with(theirs)) return true;
    files::write_atomically(file, theirs);
    if (ours.empty() || theirs.starts_with(ours)) return true;  // ours is older
    made_.warnings.push_back(file.string() + " told of another history than " + remote_.url() + "; the store's was taken");
    return false;
  }

  void remove_what_is_not_the_stores(bool same_history) {
    std::map<std::uint64_t, bool> theirs;
    for (const auto& record : made_.remote) theirs[record.index] = true;
    const auto newest = theirs.empty() ? 0 : theirs.rbegin()->first;
    for (auto checkpoint = here_.begin(); checkpoint != here_.end();) {
      const auto& [index, manifest] = *checkpoint;
      const auto name = checkpoint_name(index);
      const bool stored = theirs.contains(index);
      const bool keep = stored ? remote_.manifest_of(name) == manifest : same_history && (theirs.empty() || index > newest);
      if (keep) {
        if (!stored) made_.to_upload.push_back(index);
        ++checkpoint;
        continue;
      }
      set_aside(index);
      if (stored || !same_history) made_.warnings.push_back((run_ / name).string() + " was another one than " + remote_.url() + " has; it is removed");
      checkpoint = here_.erase(checkpoint);
    }
  }

  // Whether there is nothing newer to fetch. One of this host that is damaged makes room for the store's.
  bool newest_is_here() {
    while (!here_.empty() && here_.rbegin()->first >= made_.remote.back().index) {
      const auto index = here_.rbegin()->first;
      try {
        verify_directory(run_ / checkpoint_name(index));
        return true;
      } catch (const Failure& failure) {
        if (failure.code() != Errc::FileCorrupt) throw;
        made_.warnings.push_back(std::string(failure.what()) + "; it is removed");
        set_aside(index);
        std::erase(made_.to_upload, index);
        here_.erase(index);
      }
    }
    return false;
  }

  // .staging is emptied when the run opens.
  void set_aside(std::uint64_t index) {
    files::make_directories(run_ / ".staging");
    files::rename(run_ / checkpoint_name(index), run_ / ".staging" / ("not_of_the_store_" + std::to_string(index)));
  }

  void fetch(const CheckpointRecord& record) {
    if (here_.contains(record.index)) return;
    remote_.download_checkpoint(checkpoint_name(record.index), run_);
    here_[record.index] = {};
  }

  void fetch_newest_and_best() {
    while (!made_.remote.empty() && !newest_is_here()) {
      try {
        fetch(made_.remote.back());
      } catch (const StoreFailure&) {
        throw;
      } catch (const Failure& failure) {
        if (failure.code() != Errc::FileCorrupt) throw;
        made_.warnings.push_back(std::string(failure.what()) + "; the one before it is taken");
        made_.remote.pop_back();
      }
    }
    const auto* best = config_.checkpoint_score_attribute ? best_checkpoint(made_.remote, config_) : nullptr;
    if (best == nullptr) return;
    try {
      fetch(*best);
    } catch (const Failure& failure) {
      made_.warnings.push_back(std::string(failure.what()) + "; the best checkpoint is not here");
    }
  }

  RemoteRun& remote_;
  fs::path run_;
  const CheckpointConfig& config_;
  BroughtDown made_;
  std::map<std::uint64_t, std::string> here_;
};

}  // namespace

BroughtDown bring_down(RemoteRun& remote, const fs::path& run_directory, const CheckpointConfig& config) {
  return BringingDown{remote, run_directory, config}.all();
}

}  // namespace troupe

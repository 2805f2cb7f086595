#include "commit.hpp"

#include <troupe/checkpoint_directory.hpp>
#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>

#include <thread>

namespace troupe {

namespace {

namespace fs = std::filesystem;

/// Beside the target, so that one rename puts a checkpoint in place.
fs::path hidden_of(const fs::path& target) { return target.parent_path() / ("." + target.filename().string() + ".saving"); }

fs::path parts_of(const fs::path& target) { return hidden_of(target) / ".staging" / "parts"; }

/// The new checkpoint while the old one makes room for it, where the two cannot be exchanged.
fs::path arriving_of(const fs::path& target) { return hidden_of(target) / "arriving"; }

std::string refusal_name(int rank) { return "gave_up_" + std::to_string(rank); }

}  // namespace

fs::path plain_path(const fs::path& path) {
  auto plain = fs::absolute(path).lexically_normal();
  if (!plain.has_filename()) plain = plain.parent_path();
  return plain;
}

CheckpointDirectory::CheckpointDirectory(fs::path target, FileSystem& file_system)
    : target_(plain_path(target)), hidden_(hidden_of(target_)), file_system_(file_system) {}

fs::path CheckpointDirectory::whereabouts(const fs::path& path, FileSystem& file_system) {
  const auto target = plain_path(path), arriving = arriving_of(target);
  return !file_system.kind(target) && file_system.kind(arriving) ? arriving : path;
}

fs::path CheckpointDirectory::staging_of(const fs::path& target) { return parts_of(plain_path(target)); }

void CheckpointDirectory::settle() {
  if (!file_system_.kind(hidden_)) return;
  const auto kept = whereabouts(target_, file_system_);
  if (kept != target_) file_system_.rename(kept, target_);
  file_system_.sync_directory(target_.parent_path());  // only when the target's name lasts may what lies under the hidden one go
  file_system_.remove_tree(hidden_);
}

void CheckpointDirectory::begin(bool replace) {
  settle();
  if (const auto kind = file_system_.kind(target_)) {
    const bool directory = *kind == FileSystem::Kind::Directory;
    if (!replace) throw Failure{Errc::AlreadyExists, target_.string() + " is there already; choose another name or remove it"};
    if (!directory || (!file_system_.list(target_).empty() && !file_system_.kind(target_ / manifest_name))) {
      throw Failure{Errc::AlreadyExists, target_.string() + " holds files that are no checkpoint, and a save would replace them; choose another directory"};
    }
  }
  file_system_.make_directories(target_.parent_path());
  file_system_.make_directories(parts_of(target_));
}

void CheckpointDirectory::wait_for_parts(int num_writers, std::chrono::milliseconds limit, const std::function<bool()>& stop) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  const auto parts = parts_of(target_);
  for (int rank = 0; rank < num_writers;) {
    if (file_system_.kind(parts / rank_file_name(rank))) {
      ++rank;
      continue;
    }
    for (int other = rank; other < num_writers; ++other) {
      const auto refusal = parts / refusal_name(other);
      if (file_system_.kind(refusal)) {
        throw Failure{Errc::StorageUnavailable, "rank " + std::to_string(other) + " could not save: " + file_system_.read_all(refusal, 1 << 16)};
      }
    }
    const bool stopped = stop();
    if (stopped || std::chrono::steady_clock::now() >= deadline) {
      throw Failure{Errc::DeadlinePassed, target_.string() + ": the part of rank " + std::to_string(rank) + " was not written " +
                                              (stopped ? "before the run ended" : "within " + std::to_string(limit.count()) + " ms")};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
}

void CheckpointDirectory::give_up(const fs::path& target, int rank, const std::string& why, FileSystem& file_system) noexcept {
  try {
    file_system.write_atomically(parts_of(plain_path(target)) / refusal_name(rank), why);
  } catch (const std::exception&) {
    // The one who waits then hears of a part that did not come.
  }
}

void CheckpointDirectory::commit(int num_writers) {
  CompleteCheckpoint parts;
  for (int rank = 0; rank < num_writers; ++rank) parts.directories[rank] = parts_of(target_);
  const auto made = detail::commit_checkpoint(file_system_, hidden_, parts).checkpoint.path();
  if (!file_system_.kind(target_)) {
    file_system_.rename(made, target_);
  } else if (!file_system_.exchange(made, target_)) {
    // For a moment there is none under this name; `whereabouts` then finds the new one.
    const auto arriving = arriving_of(target_);
    file_system_.rename(made, arriving);
    file_system_.sync_directory(hidden_);
    file_system_.rename(target_, hidden_ / "replaced");
    file_system_.rename(arriving, target_);
  }
  file_system_.sync_directory(target_.parent_path());
  try {
    file_system_.remove_tree(hidden_);
  } catch (const Failure&) {
    // The next save to this target removes it.
  }
}

void CheckpointDirectory::discard() noexcept {
  try {
    settle();
  } catch (const std::exception&) {
    // The next save to this target removes it.
  }
}

}  // namespace troupe

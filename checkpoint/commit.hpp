#pragma once

#include <troupe/file_system.hpp>
#include <troupe/retention.hpp>
#include <troupe/run_storage.hpp>

#include <filesystem>

// What RunStorage does with checkpoints, on any FileSystem. `run` is the run's directory.

namespace troupe::detail {

/// As RunStorage::commit.
CheckpointRecord commit_checkpoint(FileSystem& file_system, const std::filesystem::path& run, const CompleteCheckpoint& checkpoint);
/// As RunStorage::discard.
void discard_checkpoint(FileSystem& file_system, const std::filesystem::path& run, const CompleteCheckpoint& checkpoint);
/// As RunStorage::remove.
void remove_checkpoint(FileSystem& file_system, const std::filesystem::path& run, std::uint64_t index);
/// Empties .staging, or makes it.
void sweep_staging(FileSystem& file_system, const std::filesystem::path& run);
/// Adds committed checkpoints and warnings to `contents`: manifests, sizes and rank files are verified.
void read_checkpoints(FileSystem& file_system, const std::filesystem::path& run, RunContents& contents);

}  // namespace troupe::detail

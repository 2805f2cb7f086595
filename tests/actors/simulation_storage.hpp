#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <troupe/run_storage.hpp>

#include "../../actors/checkpoint_keeper.hpp"
#include "../checkpoint/simulated_file_system.hpp"
#include "simulation_world.hpp"

namespace troupe::sim {

/// What outlives a driver, but no power cut: snapshots in memory.
class Memory {
 public:
  static constexpr const char* place = "/memory/run";
  /// A rank's share of the state after `step` steps. @param reports that it had sent
  void take(std::uint64_t attempt, int rank, int world_size, int step, std::uint64_t reports);
  [[nodiscard]] std::optional<StateCopy> newest() const;
  /// The steps of the snapshot at `path`; nothing when there is none, or it is not whole.
  [[nodiscard]] std::optional<int> steps_of(const std::filesystem::path& path) const;
  void clear() { series_.clear(); }
  [[nodiscard]] bool empty() const { return series_.empty(); }

 private:
  struct Snapshot {
    int world_size = 0;
    std::uint64_t reports = 0;  // of rank 0
    std::set<int> ranks;
    [[nodiscard]] bool whole() const { return static_cast<int>(ranks.size()) == world_size; }
  };
  static std::filesystem::path path_of(std::uint64_t attempt, int step);
  std::map<std::uint64_t, std::map<int, Snapshot>> series_;  // by attempt and step
};

/// What outlives a driver: the run's directory.
struct Disk {
  Disk();
  test::SimulatedFileSystem files;
  std::filesystem::path run = "/runs/run";
  std::vector<ReportRecord> reports;  ///< reports.jsonl
  bool has_result = false;
  Memory memory;

  /// Indices of the checkpoints that a reader would find after a power cut now.
  [[nodiscard]] std::set<std::uint64_t> durable() const;
  /// Indices of those that a reader finds.
  [[nodiscard]] std::set<std::uint64_t> visible() const;
  [[nodiscard]] std::vector<CheckpointRecord> records() const;  ///< of those, oldest first
  [[nodiscard]] bool has_staging() const;
  /// The first word of every file of a directory, "attempt=2", by the rest of it, "rank=1".
  [[nodiscard]] std::map<std::string, std::string> read(const std::filesystem::path& directory) const;
};

/// How a disk misbehaves.
struct DiskFaults {
  int error_percent = 0;  ///< of the operations: one of its steps fails, ENOSPC or EIO
  int slow_percent = 0;   ///< of the operations: they take up to `slowest`
  int report_error_percent = 0;
  Duration slowest{0};
};

/// What a storage tells of itself, before it does it.
struct DiskNews {
  std::function<void(const CompleteCheckpoint&)> committing = [](const CompleteCheckpoint&) {};
  std::function<void(const CheckpointRecord&)> committed = [](const CheckpointRecord&) {};  ///< after it
  std::function<void(std::uint64_t)> removing = [](std::uint64_t) {};
  std::function<void(std::uint64_t)> removed = [](std::uint64_t) {};  ///< after it
  std::function<void(const Result&)> finishing = [](const Result&) {};
};

/// A run's storage on a simulated disk: RunStorage's own code commits, discards and removes. Every call takes virtual time.
[[nodiscard]] std::unique_ptr<RunStorage> open_simulated_storage(World& world, Disk& disk, const DiskFaults& faults, const DiskNews& news);

[[nodiscard]] std::unique_ptr<SnapshotMemory> open_simulated_memory(Memory& memory);

/// Runs `work` with one of its operations failing, if `fails`.
void with_fault(World& world, Disk& disk, bool fails, const std::function<void()>& work);

}  // namespace troupe::sim

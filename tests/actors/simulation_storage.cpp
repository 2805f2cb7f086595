#include "simulation_storage.hpp"

#include <commit.hpp>

#include <cerrno>

namespace troupe::sim {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t never = std::uint64_t{1} << 62;

std::set<std::uint64_t> checkpoints_on(test::SimulatedFileSystem& files, const fs::path& run) {
  RunContents contents;
  detail::read_checkpoints(files, run, contents);
  std::set<std::uint64_t> found;
  for (const auto& record : contents.checkpoints) found.insert(record.index);
  return found;
}

RunContents read_disk(Disk& disk) {
  RunContents contents;
  contents.history = disk.reports;
  detail::read_checkpoints(disk.files, disk.run, contents);
  for (const auto& record : contents.history) {
    contents.next_report_index = std::max(contents.next_report_index, record.index + 1);
    contents.next_attempt = std::max(contents.next_attempt, record.attempt + 1);
  }
  for (const auto& record : contents.checkpoints) contents.next_report_index = std::max(contents.next_report_index, record.index + 1);
  return contents;
}

class SimulatedStorage final : public RunStorage {
 public:
  SimulatedStorage(World& world, Disk& disk, const DiskFaults& faults, DiskNews news)
      : RunStorage(disk.run, read_disk(disk)), world_(world), disk_(disk), faults_(faults), news_(std::move(news)) {
    detail::sweep_staging(disk_.files, disk_.run);
    disk_.has_result = false;
  }

  void append(const ReportRecord& record) override { unflushed_.push_back(record); }
  void flush() override {
    take_time();
    if (world_.random.chance(faults_.report_error_percent)) {
      throw Failure{Errc::StorageUnavailable, "cannot write " + (disk_.run / "reports.jsonl").string() + ": No space left on device"};
    }
    const auto lines = std::exchange(unflushed_, {});
    disk_.reports.insert(disk_.reports.end(), lines.begin(), lines.end());
  }
  CheckpointRecord commit(const CompleteCheckpoint& checkpoint) override {
    news_.committing(checkpoint);
    CheckpointRecord record;
    carry_out([&] { record = detail::commit_checkpoint(disk_.files, disk_.run, checkpoint); });
    news_.committed(record);
    return record;
  }
  void discard(const CompleteCheckpoint& checkpoint) override {
    carry_out([&] { detail::discard_checkpoint(disk_.files, disk_.run, checkpoint); });
  }
  void remove(std::uint64_t index) override {
    news_.removing(index);
    carry_out([&] { detail::remove_checkpoint(disk_.files, disk_.run, index); });
    news_.removed(index);
  }
  void note(const std::string&) override {}
  void write(const std::string& name, const std::string& text) override {
    carry_out([&] { disk_.files.write_atomically(disk_.run / name, text); });
  }
  void sweep() override {
    carry_out([&] { detail::sweep_staging(disk_.files, disk_.run); });
  }
  void finish(const Result& result) override {
    news_.finishing(result);
    flush();
    disk_.files.remove_tree(disk_.run / ".staging");
    disk_.has_result = true;
  }

 private:
  void take_time() {
    const bool slow = world_.random.chance(faults_.slow_percent);
    world_.block(slow ? world_.random.time(10ms, faults_.slowest) : world_.random.time(0ms, 3ms));
  }
  void carry_out(const std::function<void()>& work) {
    take_time();
    with_fault(world_, disk_, world_.random.chance(faults_.error_percent), work);
  }

  World& world_;
  Disk& disk_;
  const DiskFaults faults_;
  const DiskNews news_;
  std::vector<ReportRecord> unflushed_;
};

}  // namespace

Disk::Disk() {
  files.make_directories(run);
  files.settle();
}

std::set<std::uint64_t> Disk::durable() const {
  test::SimulatedFileSystem after{files};
  after.restart(test::SimulatedFileSystem::Kept::Nothing);
  return checkpoints_on(after, run);
}

std::set<std::uint64_t> Disk::visible() const {
  test::SimulatedFileSystem copy{files};
  return checkpoints_on(copy, run);
}

std::vector<CheckpointRecord> Disk::records() const {
  test::SimulatedFileSystem copy{files};
  RunContents contents;
  detail::read_checkpoints(copy, run, contents);
  return contents.checkpoints;
}

bool Disk::has_staging() const {
  test::SimulatedFileSystem copy{files};
  return copy.kind(run / ".staging") && !copy.files_below(run / ".staging").empty();
}

std::map<std::string, std::string> Disk::read(const fs::path& directory) const {
  test::SimulatedFileSystem copy{files};
  std::map<std::string, std::string> words;
  if (!copy.kind(directory)) return words;
  for (const auto& file : copy.files_below(directory)) {
    const auto& text = copy.bytes(file);
    const auto space = text.find(' ');
    if (text.starts_with("attempt=")) words[text.substr(space + 1)] = text.substr(0, space);
  }
  return words;
}

std::filesystem::path Memory::path_of(std::uint64_t attempt, int step) {
  return fs::path(place) / ("attempt_" + std::to_string(attempt)) / ("step_" + std::to_string(step));
}

// As a SnapshotWriter's two slots: a rank goes on only when the one before is whole.
void Memory::take(std::uint64_t attempt, int rank, int world_size, int step, std::uint64_t reports) {
  auto& series = series_[attempt];
  auto& snapshot = series[step];
  snapshot.world_size = world_size;
  if (rank == 0) snapshot.reports = reports;
  snapshot.ranks.insert(rank);
  if (!snapshot.whole()) return;
  series.erase(series.begin(), series.find(step));
  series_.erase(series_.begin(), series_.find(attempt));
}

std::optional<StateCopy> Memory::newest() const {
  for (auto series = series_.rbegin(); series != series_.rend(); ++series) {
    for (auto one = series->second.rbegin(); one != series->second.rend(); ++one) {
      const auto& [step, snapshot] = *one;
      if (snapshot.whole()) return StateCopy{path_of(series->first, step), snapshot.world_size, snapshot.reports, step};
    }
  }
  return std::nullopt;
}

std::optional<int> Memory::steps_of(const fs::path& path) const {
  for (const auto& [attempt, series] : series_) {
    for (const auto& [step, snapshot] : series) {
      if (snapshot.whole() && path_of(attempt, step) == path) return step;
    }
  }
  return std::nullopt;
}

std::unique_ptr<SnapshotMemory> open_simulated_memory(Memory& memory) {
  struct View final : SnapshotMemory {
    explicit View(Memory& of) : memory(of) {}
    fs::path path() const override { return Memory::place; }
    std::optional<StateCopy> newest() const override { return memory.newest(); }
    void remove() noexcept override { memory.clear(); }
    Memory& memory;
  };
  return std::make_unique<View>(memory);
}

void with_fault(World& world, Disk& disk, bool fails, const std::function<void()>& work) {
  if (fails) {
    // Early operations look at what is there, so that later ones would fail seldom if all were as likely.
    const int last = world.random.chance(50) ? 12 : 60;
    disk.files.fail_at(static_cast<std::uint64_t>(world.random.between(0, last)), world.random.chance(50) ? ENOSPC : EIO);
  }
  try {
    work();
  } catch (...) {
    disk.files.fail_at(never, EIO);
    throw;
  }
  disk.files.fail_at(never, EIO);
}

std::unique_ptr<RunStorage> open_simulated_storage(World& world, Disk& disk, const DiskFaults& faults, const DiskNews& news) {
  return std::make_unique<SimulatedStorage>(world, disk, faults, news);
}

}  // namespace troupe::sim

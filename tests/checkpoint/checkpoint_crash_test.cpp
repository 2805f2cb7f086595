#include "checkpoint_cases.hpp"
#include "simulated_file_system.hpp"

#include <commit.hpp>

#include <troupe/errors.hpp>

#include <gmock/gmock.h>

#include <cerrno>
#include <thread>

// A save of three ranks that is stopped, or fails, at every operation in turn.

namespace troupe {
namespace {

using test::SimulatedFileSystem;
using test::State;
using Kept = SimulatedFileSystem::Kept;
using testing::HasSubstr;

const std::filesystem::path kRun = "/run";
constexpr std::uint64_t kOld = 1, kNew = 2;

std::filesystem::path staging(std::uint64_t index) { return kRun / ".staging" / ("save_" + std::to_string(index)); }

void write_rank(FileSystem& disk, const State& state, std::uint64_t index, int rank) {
  write_part(staging(index), state.part(rank), disk);
  if (rank != 1) return;
  const auto text = "{\"of\": " + std::to_string(index) + "}";  // a user's file, which nobody has synced
  const auto file = disk.open(staging(index) / "config.json", FileSystem::Access::Write);
  file->write(std::as_bytes(std::span{text}), 0);
}

void commit(FileSystem& disk, std::uint64_t index) {
  const auto directory = staging(index).string();
  (void)detail::commit_checkpoint(disk, kRun, {index, Metrics{{"loss", 0.5}}, {{0, directory}, {1, directory}, {2, directory}}});
}

void save(FileSystem& disk, const State& state, std::uint64_t index) {
  for (const int rank : {2, 0, 1}) write_rank(disk, state, index, rank);
  commit(disk, index);
}

class CheckpointCrash : public testing::Test {
 protected:
  State old_{kOld, 3}, new_{kNew, 3};
  SimulatedFileSystem base_;

  void SetUp() override {
    base_.make_directory(kRun);
    detail::sweep_staging(base_, kRun);
    save(base_, old_, kOld);
    base_.settle();
  }

  /// What a reader finds must be whole, and undamaged whatever has a checkpoint's name. Returns its index; 0: nothing.
  std::uint64_t check_what_is_found(SimulatedFileSystem& disk) {
    RunContents contents;
    detail::read_checkpoints(disk, kRun, contents);
    EXPECT_THAT(contents.warnings, testing::IsEmpty());
    for (const auto& record : contents.checkpoints) {
      const CheckpointReader reader{record.checkpoint.path(), disk};
      EXPECT_NO_THROW(reader.verify());
      EXPECT_EQ((record.index == kOld ? old_ : new_).difference(reader), "");
    }
    return contents.checkpoints.empty() ? 0 : contents.checkpoints.back().index;
  }
};

TEST_F(CheckpointCrash, LeavesTheOldOrTheNewOneWholeAtEveryCut) {
  const std::vector<std::pair<Kept, std::uint64_t>> modes = {{Kept::Nothing, 0}, {Kept::Everything, 0}, {Kept::Parts, 1}, {Kept::Parts, 2},
                                                             {Kept::Parts, 3},   {Kept::Parts, 4},      {Kept::Parts, 5}, {Kept::Parts, 6}};
  int num_cuts = 0, num_new = 0;
  for (std::uint64_t cut = 0;; ++cut) {
    SimulatedFileSystem running{base_};
    running.stop_at(cut);
    bool committed = false, ended = false;
    try {
      save(running, new_, kNew);
      committed = true;
      detail::remove_checkpoint(running, kRun, kOld);
      ended = true;
    } catch (const SimulatedFileSystem::Stopped&) {
    }
    for (const auto& [kept, seed] : modes) {
      SimulatedFileSystem disk{running};
      disk.restart(kept, seed * 1000 + cut);
      const auto found = check_what_is_found(disk);
      EXPECT_TRUE(found == kNew || (found == kOld && !committed)) << "found " << found;
      num_new += found == kNew;
      ++num_cuts;
      detail::sweep_staging(disk, kRun);
      EXPECT_EQ(disk.list(kRun / ".staging").size(), 0u);
      if (HasFailure()) FAIL() << "stopped before change " << cut << ", kept " << static_cast<int>(kept) << ", seed " << seed;
    }
    if (ended) break;
  }
  EXPECT_GT(num_cuts, 400);
  EXPECT_GT(num_new, 0);
  RecordProperty("cuts", num_cuts);
}

TEST_F(CheckpointCrash, LeavesTheOldOrTheNewOneWholeWhenRanksWriteAtOnce) {
  for (std::uint64_t cut = 0;; ++cut) {
    SimulatedFileSystem running{base_};
    running.stop_at(cut);
    std::atomic<bool> stopped = false;
    const auto guarded = [&](auto&& work) {
      try {
        work();
      } catch (const SimulatedFileSystem::Stopped&) {
        stopped = true;
      }
    };
    {
      std::vector<std::jthread> ranks;
      for (int rank = 0; rank < 3; ++rank) ranks.emplace_back([&, rank] { guarded([&] { write_rank(running, new_, kNew, rank); }); });
    }
    if (!stopped) guarded([&] { commit(running, kNew); });
    running.restart(Kept::Parts, cut);
    const auto found = check_what_is_found(running);
    EXPECT_TRUE(found == kNew || (found == kOld && stopped)) << "found " << found;
    if (HasFailure()) FAIL() << "stopped before change " << cut;
    if (!stopped) break;
  }
}

TEST_F(CheckpointCrash, FailsClearlyAtEveryOperationAndKeepsThePreviousOne) {
  const std::vector<std::pair<int, const char*>> errors = {
      {EIO, "Input/output"}, {ENOSPC, "No space"}, {EROFS, "Read-only"}, {EACCES, "Permission"}};
  for (const auto& [error, text] : errors) {
    int num_failed = 0;
    for (std::uint64_t operation = 0;; ++operation) {
      SimulatedFileSystem disk{base_};
      disk.fail_at(operation, error);
      const auto failure = test::failure_of([&] { save(disk, new_, kNew); });
      const bool injected = disk.has_failed();
      if (failure.code() == Errc::Ok) {
        SimulatedFileSystem after{disk};  // in which nothing fails
        EXPECT_EQ(check_what_is_found(after), kNew);
      } else {
        EXPECT_EQ(failure.code(), Errc::StorageUnavailable) << failure.what();
        EXPECT_THAT(failure.what(), testing::AllOf(HasSubstr(text), HasSubstr(kRun.string())));
        EXPECT_EQ(check_what_is_found(disk), kOld);
        disk.restart(Kept::Parts, operation);
        EXPECT_THAT(check_what_is_found(disk), testing::AnyOf(kOld, kNew));  // the last rename's taking back may be lost, too
        ++num_failed;
      }
      if (HasFailure()) FAIL() << "operation " << operation << ", " << text << ": " << failure.what();
      if (!injected) break;
    }
    EXPECT_GT(num_failed, 80);
  }
}

TEST_F(CheckpointCrash, DiscardsAFailedSaveAndTheNextOneSucceeds) {
  SimulatedFileSystem disk{base_};
  disk.fail_at(60, ENOSPC);
  EXPECT_EQ(test::failure_of([&] { save(disk, new_, kNew); }).code(), Errc::StorageUnavailable);
  detail::discard_checkpoint(disk, kRun, {kNew, {}, {{0, staging(kNew).string()}}});
  EXPECT_EQ(disk.list(kRun / ".staging").size(), 0u);
  save(disk, new_, kNew);
  EXPECT_EQ(check_what_is_found(disk), kNew);
}

TEST_F(CheckpointCrash, RemovesACheckpointOrThrowsAndLeavesItWholeAtEveryError) {
  save(base_, new_, kNew);
  base_.settle();
  int num_thrown = 0;
  for (std::uint64_t operation = 0;; ++operation) {
    SimulatedFileSystem disk{base_};
    disk.fail_at(operation, EIO);
    bool thrown = false;
    try {
      detail::remove_checkpoint(disk, kRun, kOld);
    } catch (const Failure&) {
      thrown = true;
      ++num_thrown;
    }
    const bool injected = disk.has_failed();
    disk.settle();
    RunContents contents;
    detail::read_checkpoints(disk, kRun, contents);
    EXPECT_EQ(contents.checkpoints.size(), thrown ? 2u : 1u) << "operation " << operation;
    EXPECT_THAT(contents.warnings, testing::IsEmpty());
    if (!injected) break;
  }
  EXPECT_GT(num_thrown, 0);
}

TEST_F(CheckpointCrash, RemovesACheckpointWholeOrNotAtAllAtEveryCut) {
  save(base_, new_, kNew);
  base_.settle();
  for (std::uint64_t cut = 0;; ++cut) {
    SimulatedFileSystem running{base_};
    running.stop_at(cut);
    bool ended = false;
    try {
      detail::remove_checkpoint(running, kRun, kOld);
      ended = true;
    } catch (const SimulatedFileSystem::Stopped&) {
    }
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      SimulatedFileSystem disk{running};
      disk.restart(seed ? Kept::Parts : Kept::Nothing, seed + cut * 10);
      EXPECT_EQ(check_what_is_found(disk), kNew);
    }
    if (HasFailure()) FAIL() << "stopped before change " << cut;
    if (ended) break;
  }
}

}  // namespace
}  // namespace troupe

#include "checkpoint_cases.hpp"
#include "simulated_file_system.hpp"

#include <troupe/checkpoint_directory.hpp>

#include <gmock/gmock.h>

#include <cerrno>

// A checkpoint at a path of the user's own is replaced by the next one: stopped, or failing, at every operation in turn, on disks that
// can exchange two directories and on those that cannot.

namespace troupe {
namespace {

using test::SimulatedFileSystem;
using test::State;
using Kept = SimulatedFileSystem::Kept;
using namespace std::chrono_literals;

const std::filesystem::path kTarget = "/run/saved";
constexpr std::uint64_t kOld = 1, kNew = 2, kNext = 3;

void save(FileSystem& disk, const State& state) {
  CheckpointDirectory directory{kTarget, disk};
  directory.begin();
  try {
    for (const int rank : {1, 0}) write_part(CheckpointDirectory::staging_of(kTarget), state.part(rank), disk);
    directory.wait_for_parts(2, 1s, [] { return false; });
    directory.commit(2);
  } catch (const Failure&) {
    directory.discard();
    throw;
  }
}

/// Whether the machine stopped before change number `cut` from now on.
bool stopped(SimulatedFileSystem& disk, const State& state, std::uint64_t cut) {
  disk.stop_at(cut);
  try {
    save(disk, state);
    return false;
  } catch (const SimulatedFileSystem::Stopped&) {
    return true;
  }
}

class CheckpointReplace : public testing::TestWithParam<bool> {
 protected:
  State old_{kOld, 2}, new_{kNew, 2}, next_{kNext, 2};
  SimulatedFileSystem base_;

  void SetUp() override {
    base_.set_can_exchange(GetParam());
    save(base_, old_);
    base_.settle();
  }

  /// The number of the checkpoint that is found, after every byte of it was read.
  std::uint64_t found(SimulatedFileSystem& disk) {
    const CheckpointReader reader{kTarget, disk};
    reader.verify();
    const auto seed = State::seed_of(reader);
    EXPECT_EQ((seed == kOld ? old_ : seed == kNew ? new_ : next_).difference(reader), "");
    return seed;
  }
};

TEST_P(CheckpointReplace, LeavesTheOldOrTheNewOneWholeAtEveryCut) {
  int num_new = 0, num_beside = 0;
  for (std::uint64_t cut = 0;; ++cut) {
    SimulatedFileSystem running{base_};
    const bool ended = !stopped(running, new_, cut);
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      SimulatedFileSystem disk{running};
      disk.restart(seed == 0 ? Kept::Nothing : seed == 1 ? Kept::Everything : Kept::Parts, seed * 1000 + cut);
      const auto which = found(disk);
      EXPECT_TRUE(which == kNew || (which == kOld && !ended)) << "found " << which;
      num_new += which == kNew;
      num_beside += CheckpointDirectory::whereabouts(kTarget, disk) != kTarget;
      save(disk, next_);
      EXPECT_EQ(found(disk), kNext);
      EXPECT_EQ(disk.list("/run").size(), 1u);
      if (HasFailure()) FAIL() << "stopped before change " << cut << ", seed " << seed;
    }
    if (ended) break;
  }
  EXPECT_GT(num_new, 8);
  EXPECT_EQ(num_beside > 0, !GetParam());
}

/// The process is killed and the machine goes on; the next save begins with what the first has left, and then the machine stops too.
TEST_P(CheckpointReplace, SurvivesASaveThatCleansUpAfterAnother) {
  int num_cuts = 0;
  for (std::uint64_t cut = 0;; ++cut) {
    SimulatedFileSystem running{base_};
    const bool ended = !stopped(running, new_, cut);
    SimulatedFileSystem killed{running};
    killed.start_again();
    const auto before = found(killed);
    for (std::uint64_t second = 0; second < 40; ++second) {
      SimulatedFileSystem again{killed};
      if (!stopped(again, next_, second)) break;
      for (std::uint64_t seed = 0; seed < 3; ++seed) {
        SimulatedFileSystem disk{again};
        disk.restart(seed == 0 ? Kept::Nothing : Kept::Parts, seed * 1000 + 100 * cut + second);
        const auto which = found(disk);
        EXPECT_TRUE(which == before || which == kOld || which == kNew) << "found " << which;
        ++num_cuts;
      }
      if (HasFailure()) FAIL() << "stopped before change " << cut << ", and then before change " << second;
    }
    if (ended) break;
  }
  EXPECT_GT(num_cuts, 1000);
}

TEST_P(CheckpointReplace, FailsClearlyAtEveryOperationAndKeepsTheOldOrTheNewOne) {
  int num_failed = 0;
  for (std::uint64_t operation = 0;; ++operation) {
    SimulatedFileSystem disk{base_};
    disk.fail_at(operation, EIO);
    const auto failure = test::failure_of([&] { save(disk, new_); });
    const bool injected = disk.has_failed();
    if (failure.code() != Errc::Ok) {
      EXPECT_THAT(failure.what(), testing::HasSubstr("/run"));
      ++num_failed;
    }
    SimulatedFileSystem after{disk};  // in which nothing fails
    const auto which = found(after);
    EXPECT_TRUE(which == kNew || (which == kOld && failure.code() != Errc::Ok)) << "found " << which;
    disk.restart(Kept::Parts, operation);
    EXPECT_THAT(found(disk), testing::AnyOf(kOld, kNew));
    if (HasFailure()) FAIL() << "operation " << operation << ": " << failure.what();
    if (!injected) break;
  }
  EXPECT_GT(num_failed, 80);
}

INSTANTIATE_TEST_SUITE_P(Disks, CheckpointReplace, testing::Bool(), [](const auto& param) { return param.param ? "Exchanging" : "Renaming"; });

}  // namespace
}  // namespace troupe

#include "fault_run.hpp"

#include <troupe/memory_snapshot.hpp>
#include <troupe/run_storage.hpp>

#include <nlohmann/json.hpp>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

// What a host runs out of, for real: descriptors, threads, processes, a file system that is full.

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

constexpr uid_t nobody = 65534;
constexpr int refused = 99;  // exit code of a child that may not be what it should

class Limits : public FaultRun {
 protected:
  /// Runs the program as a driver in a child that `prepare` has limited. Its exit code, or minus the signal. `look` is called while it runs.
  int fit(const std::function<bool()>& prepare, std::map<std::string, std::string> environment = {}, const std::function<void()>& look = [] {}) {
    environment.try_emplace("TROUPE_TEST_STORAGE", directory_.path().string());
    environment.try_emplace("TROUPE_TEST_CONFIG", config_.json().dump());
    const auto driver = fork();
    if (driver == 0) {
      for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
      if (!prepare()) _exit(refused);
      execl("/proc/self/exe", "limits_test", "--fit", nullptr);
      _exit(refused);
    }
    int status = 0;
    const auto deadline = std::chrono::steady_clock::now() + 40s;
    while (waitpid(driver, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > deadline) {
        kill(driver, SIGKILL);
        waitpid(driver, &status, 0);
        ADD_FAILURE() << "the run does not end";
        break;
      }
      look();
      std::this_thread::sleep_for(10ms);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  Result result() const { return Result::from_path(directory_.path() / "run"); }
  static bool limit(int what, rlim_t value) {
    const rlimit both{value, value};
    return setrlimit(static_cast<__rlimit_resource_t>(what), &both) == 0;
  }
};

TEST_F(Limits, NamesTheLimitOnDescriptors) {
  EXPECT_EQ(fit([] { return limit(RLIMIT_NOFILE, 48); }, {{"TROUPE_TEST_RANKS", "16"}}), 1);
  EXPECT_EQ(result().error->code, Errc::StartFailed);
  EXPECT_THAT(result().error->message, HasSubstr("RLIMIT_NOFILE = 48"));
}

TEST_F(Limits, NamesTheLimitOnThreadsAndProcesses) {
  std::filesystem::permissions(directory_.path(), std::filesystem::perms::all);
  for (const char* threads : {"1", ""}) {
    SCOPED_TRACE(threads);
    std::map<std::string, std::string> environment{{"TROUPE_TEST_RANKS", "24"}};
    if (*threads) environment["TROUPE_TEST_THREADS"] = threads;
    std::filesystem::remove_all(directory_.path() / "run");
    const auto code = fit([] { return geteuid() == 0 && limit(RLIMIT_NPROC, 16) && setresgid(nobody, nobody, nobody) == 0 && setresuid(nobody, nobody, nobody) == 0; }, environment);
    if (code == refused) GTEST_SKIP() << "needs root, and a program that others may run";
    EXPECT_EQ(code, 1);
    EXPECT_EQ(result().error->code, Errc::StartFailed) << result().error->message;
    EXPECT_THAT(result().error->message, HasSubstr("ulimit -u"));
  }
}

/// Whatever address space a driver may have beside what it has when it begins: it ends by itself, and says why.
class AddressSpace : public Limits {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "a sanitizer takes terabytes of it";
#endif
    if (!std::getenv("TROUPE_ADDRESS_SPACE")) GTEST_SKIP() << "CAF 0.17 does not survive every want of memory (docs/supervision.md); TROUPE_ADDRESS_SPACE=1 looks where";
  }
  void expect_clear_ends(std::map<std::string, std::string> environment) {
    for (const int room : {8, 16, 48, 96, 160, 256, 400, 800}) {
      SCOPED_TRACE(std::to_string(room) + " MB");
      environment["TROUPE_TEST_ADDRESS_SPACE_MB"] = std::to_string(room);
      std::filesystem::remove_all(directory_.path() / "run");
      const auto code = fit([] { return true; }, environment);
      ASSERT_TRUE(code == 0 || code == 1) << code;
      if (code == 0 || !std::filesystem::exists(directory_.path() / "run" / "result.json")) continue;
      const auto error = result().error;
      EXPECT_TRUE(error->code == Errc::StartFailed || error->code == Errc::OutOfMemory) << name(error->code) << ": " << error->message;
    }
  }
};

TEST_F(AddressSpace, OfTheDriverEndsARunOfThreadsAndNeverTheProgram) { expect_clear_ends({{"TROUPE_TEST_RANKS", "64"}, {"TROUPE_TEST_THREADS", "1"}}); }

TEST_F(AddressSpace, OfTheDriverEndsARunOfProcessesAndNeverTheProgram) { expect_clear_ends({{"TROUPE_TEST_RANKS", "4"}}); }

/// A file system in memory of `size` at the test's directory, seen by this process and its children only.
class SmallDisk : public Limits {
 protected:
  static void SetUpTestSuite() {
    alone_ = unshare(CLONE_NEWNS) == 0 && mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }
  void SetUp() override {
    if (!alone_) GTEST_SKIP() << "needs root and a mount namespace";
    ASSERT_TRUE(resize("size=1m"));
    config_.set("steps", 30);
    config_.set("storage", directory_.path().string());
    environment_["TROUPE_TEST_FUNCTION"] = "saves";
  }
  void TearDown() override {
    if (alone_) umount2(directory_.path().c_str(), MNT_DETACH);
  }
  bool resize(const char* options) { return mount("tmpfs", directory_.path().c_str(), "tmpfs", std::exchange(mounted_, true) ? MS_REMOUNT : 0, options) == 0; }
  /// Every checkpoint that the run's directory shows is whole.
  int whole_checkpoints() const {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator{directory_.path() / "run"}) {
      if (!entry.path().filename().string().starts_with("checkpoint_")) continue;
      EXPECT_EQ(std::filesystem::file_size(entry.path() / "weights"), 64u << 10) << entry.path();
      ++count;
    }
    return count;
  }

  std::map<std::string, std::string> environment_;

 private:
  static inline bool alone_ = false;
  bool mounted_ = false;
};

TEST_F(SmallDisk, ThatFillsUpCostsNoCheckpointThatWasThereAndTheRunResumesOnceThereIsRoom) {
  const auto code = fit([] { return true; }, environment_);
  EXPECT_EQ(code, 1);  // reports cannot be kept either
  const int kept = whole_checkpoints();
  EXPECT_GE(kept, 8);
  ASSERT_TRUE(resize("size=16m"));
  EXPECT_EQ(fit([] { return true; }, environment_), 0);
  EXPECT_GT(whole_checkpoints(), kept);
  EXPECT_TRUE(result().ok());
}

/// A second mount of the same directory lies over it: what is opened by its path from then on, as every checkpoint is, is refused by the kernel.
/// The tmpfs itself cannot be made read-only while the driver holds its files open. For those see RunStorageTest and KeeperTest.
TEST_F(SmallDisk, ThatBecomesReadOnlyCostsCheckpointsOnlyUntilItIsWritableAgain) {
  ASSERT_TRUE(resize("size=64m"));
  config_.set("steps", 200);
  config_.set("step_ms", 20);
  enum { Before, During, After } phase = Before;
  int kept = -1;
  std::chrono::steady_clock::time_point began;
  const auto look = [&] {
    const auto run = directory_.path() / "run";
    const auto now = std::chrono::steady_clock::now();
    if (phase == Before && std::filesystem::exists(run / checkpoint_name(5))) {
      ASSERT_EQ(mount(directory_.path().c_str(), directory_.path().c_str(), nullptr, MS_BIND, nullptr), 0);
      ASSERT_EQ(mount(nullptr, directory_.path().c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr), 0);
      phase = During;
      began = now;
    } else if (phase == During && kept < 0 && now > began + 200ms) {  // what was under way has ended
      kept = whole_checkpoints();
    } else if (phase == During && kept >= 0 && now > began + 700ms) {
      EXPECT_EQ(whole_checkpoints(), kept);
      ASSERT_EQ(umount2(directory_.path().c_str(), MNT_DETACH), 0);
      phase = After;
    }
  };
  EXPECT_EQ(fit([] { return true; }, environment_, look), 0);
  ASSERT_EQ(phase, After);
  const auto after = result();
  EXPECT_TRUE(after.ok());
  EXPECT_EQ(after.history.size(), 200u);
  EXPECT_THAT(after.warnings, testing::Contains(testing::AllOf(HasSubstr("the checkpoint of report "), HasSubstr("Read-only file system"))));
  EXPECT_EQ(after.checkpoint->index, 199u);
  EXPECT_EQ(static_cast<std::size_t>(whole_checkpoints()), after.checkpoints.size());
  EXPECT_LT(after.checkpoints.size(), 200u);
}

TEST_F(SmallDisk, WithoutRoomForSnapshotsIsToldAndNeverWrittenBeyond) {
  std::vector<float> values(1 << 20);  // 4 MB, of 1
  TensorSpec spec{"w", SafetensorsDtype::F32, {1 << 20}};
  SharedTensorFile file{"model", {spec}, {}, {}, 0};
  file.mine.push_back({0, 0, std::as_bytes(std::span{values})});
  CheckpointPart part{0, 1, 1, {file}, TrainState{}, {}};
  const auto series = begin_snapshot_series(directory_.path());
  SnapshotWriter writer{{directory_.path(), series, 1, 0, 1}};
  const auto room = writer.reserve(part);
  EXPECT_EQ(room.code(), Errc::StorageUnavailable) << room.text();
  ASSERT_TRUE(resize("size=32m"));
  EXPECT_TRUE(writer.reserve(part).ok());
  EXPECT_EQ(writer.take(1, part, 0).taken, SnapshotWriter::Taken::Good);
}

}  // namespace
}  // namespace troupe

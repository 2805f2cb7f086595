#include <troupe/start_limits.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class StartLimits : public testing::Test {
 protected:
  fs::path root_;
  rlimit processes_{}, memory_{};

  void SetUp() override {
    auto pattern = (fs::temp_directory_path() / "troupe-limits-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
    write("proc/self/statm", "25600 100 10 1 0 200 0");
    getrlimit(RLIMIT_NPROC, &processes_);
    getrlimit(RLIMIT_AS, &memory_);
    set(RLIMIT_NPROC, processes_, processes_.rlim_max);
    set(RLIMIT_AS, memory_, memory_.rlim_max);
  }
  void TearDown() override {
    setrlimit(RLIMIT_NPROC, &processes_);
    setrlimit(RLIMIT_AS, &memory_);
    fs::remove_all(root_);
  }
  static void set(__rlimit_resource what, const rlimit& before, rlim_t value) {
    const rlimit now{std::min(value, before.rlim_max), before.rlim_max};
    setrlimit(what, &now);
  }
  void write(const fs::path& file, const std::string& text) const {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream{root_ / file} << text << "\n";
  }
};

TEST_F(StartLimits, NamesThoseOfTheUserAndOfMemory) {
  set(RLIMIT_NPROC, processes_, 3000);
  set(RLIMIT_AS, memory_, rlim_t{64} << 30);
  EXPECT_THAT(limits_on_starting(root_), AllOf(HasSubstr("RLIMIT_NPROC = 3000 "), HasSubstr("(ulimit -u)"), HasSubstr("RLIMIT_AS = 65536 MB of address space, 100 MB in use (ulimit -v)"),
                                               HasSubstr("raise the one that is reached, or use fewer ranks")));
}

TEST_F(StartLimits, NamesThatOfTheNearestControlGroup) {
  write("proc/self/cgroup", "0::/a/b");
  write("sys/fs/cgroup/a/b/pids.max", "max");
  write("sys/fs/cgroup/a/pids.max", "20");
  write("sys/fs/cgroup/a/pids.current", "19");
  EXPECT_THAT(limits_on_starting(root_), HasSubstr("pids.max of the control group = 20 tasks, 19 in use"));
  write("proc/self/cgroup", "3:cpu:/x\n2:pids:/outside/the/container");
  write("sys/fs/cgroup/pids/pids.max", "7");
  EXPECT_THAT(limits_on_starting(root_), AllOf(HasSubstr("pids.max of the control group = 7 tasks"), Not(HasSubstr("= 20 tasks"))));
}

TEST_F(StartLimits, SaysWhenNoneIsSet) {
  if (processes_.rlim_max != RLIM_INFINITY || memory_.rlim_max != RLIM_INFINITY) GTEST_SKIP() << "this user has a hard limit";
  EXPECT_THAT(limits_on_starting(root_), HasSubstr("no limit is set on this process: the host may be out of memory or of thread numbers"));
}

TEST_F(StartLimits, AThreadThatCannotBeStartedIsAFailureThatSaysForWhatAndWhy) {
  set(RLIMIT_AS, memory_, 0);  // no room for a stack; the test's own memory is there already
  try {
    start_thread("rank 3", [] {}).join();
    setrlimit(RLIMIT_AS, &memory_);
    GTEST_SKIP() << "a stack was kept from another thread";
  } catch (const Failure& failure) {
    setrlimit(RLIMIT_AS, &memory_);
    EXPECT_EQ(failure.code(), Errc::StartFailed);
    EXPECT_THAT(failure.what(), AllOf(HasSubstr("cannot start a thread for rank 3: "), HasSubstr("RLIMIT_AS = 0 MB")));
  }
}

}  // namespace
}  // namespace troupe

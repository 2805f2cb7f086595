#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <troupe/run_storage.hpp>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class RunStorageTest : public testing::Test {
 protected:
  fs::path root_;
  RunConfig config_;

  void SetUp() override {
    auto pattern = (fs::temp_directory_path() / "troupe-storage-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
    config_.storage_path = root_;
    config_.name = "run";
  }
  void TearDown() override { fs::remove_all(root_); }

  fs::path run() const { return root_ / "run"; }
  static void write(const fs::path& file, const std::string& text) {
    fs::create_directories(file.parent_path());
    std::ofstream{file, std::ios::binary} << text;
  }
  static std::string read(const fs::path& file) {
    std::ostringstream text;
    text << std::ifstream{file, std::ios::binary}.rdbuf();
    return text.str();
  }
  fs::path stage(const std::string& name, const std::map<std::string, std::string>& files) const {
    const auto directory = run() / ".staging" / name;
    for (const auto& [file, text] : files) write(directory / file, text);
    return directory;
  }
  CheckpointRecord commit(RunStorage& storage, std::uint64_t index, double score = 0) {
    return storage.commit({index, Metrics{{"acc", score}}, {{0, stage("s" + std::to_string(index), {{"w", "weights"}})}}});
  }
  static ReportRecord report(std::uint64_t index) {
    ReportRecord made;
    made.attempt = 1;
    made.index = index;
    made.metrics = Metrics{{"i", static_cast<int>(index)}};
    return made;
  }
  template <class F>
  static Failure failure_of(F&& body) {
    try {
      body();
    } catch (const Failure& failure) {
      return failure;
    }
    return Failure{Errc::Ok, "nothing failed"};
  }
};

TEST_F(RunStorageTest, MakesTheRunsDirectoryAndFindsNothingInIt) {
  const RunStorage storage{config_};
  EXPECT_EQ(storage.path(), run());
  EXPECT_TRUE(storage.found().history.empty());
  EXPECT_EQ(storage.found().next_attempt, 1u);
  EXPECT_EQ(storage.found().next_report_index, 0u);
}

TEST_F(RunStorageTest, NamesARunThatHasNoName) {
  config_.name.clear();
  const RunStorage first{config_};
  const RunStorage second{config_};
  EXPECT_THAT(first.name(), HasSubstr("troupe_run-"));
  EXPECT_NE(first.name(), second.name());
}

TEST_F(RunStorageTest, AppendsReportsAndReadsThemBack) {
  {
    RunStorage storage{config_};
    storage.append(report(0));
    storage.append(report(1));
    storage.flush();
    EXPECT_EQ(read_run(run()).history.size(), 2u);
  }
  RunStorage again{config_};
  ASSERT_EQ(again.found().history.size(), 2u);
  EXPECT_EQ(again.found().history[1].metrics, (Metrics{{"i", 1}}));
  EXPECT_EQ(again.found().next_report_index, 2u);
  EXPECT_EQ(again.found().next_attempt, 2u);
}

TEST_F(RunStorageTest, CutsALineThatACrashHasTorn) {
  {
    RunStorage storage{config_};
    storage.append(report(0));
  }
  std::ofstream{run() / "reports.jsonl", std::ios::app} << R"({"attempt": 1, "ra)";
  {
    RunStorage again{config_};
    EXPECT_EQ(again.found().history.size(), 1u);
    again.append(report(1));
  }
  EXPECT_EQ(read_run(run()).history.size(), 2u);
}

/// Files of this process may not be longer than `bytes` while it lives.
class LengthLimit {
 public:
  explicit LengthLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit less{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &less);
    old_ = std::signal(SIGXFSZ, SIG_IGN);
  }
  ~LengthLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, old_);
  }

 private:
  rlimit before_{};
  void (*old_)(int) = nullptr;
};

TEST_F(RunStorageTest, WritesWhatTheDiskRefusedWithALaterFlushWithoutAGap) {
  RunStorage storage{config_};
  storage.append(report(0));
  storage.flush();
  storage.note("{\"n\": 0}");
  {
    const LengthLimit limit{fs::file_size(run() / "reports.jsonl") + 7};  // torn in the middle of a line
    for (std::uint64_t i = 1; i < 3; ++i) {
      storage.append(report(i));
      EXPECT_EQ(failure_of([&] { storage.flush(); }).code(), Errc::StorageUnavailable);
    }
  }
  {
    const LengthLimit limit{3};
    EXPECT_EQ(failure_of([&] { storage.note("{\"n\": 1}"); }).code(), Errc::StorageUnavailable);
  }
  storage.append(report(3));
  storage.flush();
  storage.note("{\"n\": 2}");
  const auto found = read_run(run());
  ASSERT_EQ(found.history.size(), 4u);
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_EQ(found.history[i].index, i);
  EXPECT_EQ(read(run() / "journal.jsonl"), "{\"n\": 0}\n{\"n\": 1}\n{\"n\": 2}\n");
}

TEST_F(RunStorageTest, NamesTheLineOfADamagedReport) {
  write(run() / "reports.jsonl", "{}\n");
  const auto failure = failure_of([&] { RunStorage{config_}; });
  EXPECT_EQ(failure.code(), Errc::FileCorrupt);
  EXPECT_THAT(failure.what(), HasSubstr("reports.jsonl, line 1"));
}

TEST_F(RunStorageTest, CommitsTheFilesOfAllWritersInOneDirectory) {
  RunStorage storage{config_};
  const auto a = stage("a", {{"model.bin", "model"}, {"deep/er/x", "x"}});
  const auto b = stage("b", {{"rank1.bin", "one"}});
  const auto record = storage.commit({2, Metrics{{"acc", 0.5}}, {{0, a}, {1, b}}});
  EXPECT_EQ(record.checkpoint.path(), run() / "checkpoint_000002");
  EXPECT_EQ(read(record.checkpoint.path() / "model.bin"), "model");
  EXPECT_EQ(read(record.checkpoint.path() / "deep/er/x"), "x");
  EXPECT_EQ(read(record.checkpoint.path() / "rank1.bin"), "one");
  EXPECT_FALSE(fs::exists(a));
  EXPECT_FALSE(fs::exists(b));
  const auto manifest = nlohmann::json::parse(read(record.checkpoint.path() / "manifest.json"));
  EXPECT_EQ(manifest["index"], 2);
  EXPECT_EQ(manifest["files"].size(), 3u);  // not the manifests themselves
  EXPECT_EQ(manifest["metrics"]["acc"], 0.5);
}

TEST_F(RunStorageTest, CopiesACheckpointThatWasMadeElsewhere) {
  RunStorage storage{config_};
  write(root_ / "mine" / "w", "weights");
  (void)storage.commit({0, {}, {{0, root_ / "mine"}}});
  EXPECT_EQ(read(run() / "checkpoint_000000" / "w"), "weights");
  EXPECT_EQ(read(root_ / "mine" / "w"), "weights");
}

TEST_F(RunStorageTest, RefusesTwoWritersOfOneFileAndTouchesNothing) {
  RunStorage storage{config_};
  const auto a = stage("a", {{"w", "1"}});
  const auto b = stage("b", {{"w", "2"}});
  const auto failure = failure_of([&] { (void)storage.commit({0, {}, {{0, a}, {1, b}}}); });
  EXPECT_EQ(failure.code(), Errc::AlreadyExists);
  EXPECT_THAT(failure.what(), HasSubstr("ranks 0 and 1 both wrote w"));
  EXPECT_TRUE(fs::exists(a / "w"));
  EXPECT_FALSE(fs::exists(run() / "checkpoint_000000"));
}

TEST_F(RunStorageTest, RefusesACheckpointWithoutFiles) {
  RunStorage storage{config_};
  EXPECT_EQ(failure_of([&] { (void)storage.commit({0, {}, {{0, "/nowhere/at/all"}}}); }).code(), Errc::FileNotFound);
  fs::create_directories(run() / ".staging" / "empty");
  EXPECT_EQ(failure_of([&] { (void)storage.commit({0, {}, {{0, run() / ".staging" / "empty"}}}); }).code(), Errc::FileNotFound);
}

TEST_F(RunStorageTest, RemovesCheckpointsAndLeavesNoRest) {
  RunStorage storage{config_};
  (void)commit(storage, 0);
  (void)commit(storage, 1);
  storage.remove(0);
  EXPECT_FALSE(fs::exists(run() / "checkpoint_000000"));
  EXPECT_EQ(read_run(run()).checkpoints.size(), 1u);
}

TEST_F(RunStorageTest, ClearsWhatABrokenRunLeftUncommitted) {
  write(run() / ".staging" / "merge_3" / "w", "half");
  RunStorage storage{config_};
  EXPECT_TRUE(fs::is_empty(run() / ".staging"));
}

TEST_F(RunStorageTest, LeavesADamagedCheckpointAsideAndSaysSo) {
  {
    RunStorage storage{config_};
    (void)commit(storage, 0);
    (void)commit(storage, 1);
  }
  fs::resize_file(run() / "checkpoint_000001" / "w", 3);
  RunStorage again{config_};
  ASSERT_EQ(again.found().checkpoints.size(), 1u);
  EXPECT_EQ(again.found().checkpoints[0].index, 0u);
  ASSERT_EQ(again.found().warnings.size(), 1u);
  EXPECT_THAT(again.found().warnings[0], HasSubstr("w has 3 of 7 bytes"));
  EXPECT_EQ(again.found().next_report_index, 2u);  // its name stays taken
}

TEST_F(RunStorageTest, RefusesASecondDriver) {
  const RunStorage first{config_};
  const auto failure = failure_of([&] { RunStorage{config_}; });
  EXPECT_EQ(failure.code(), Errc::AlreadyExists);
  EXPECT_THAT(failure.what(), HasSubstr("process " + std::to_string(getpid())));
}

TEST_F(RunStorageTest, RefusesARunThatExistsWhenResumeIsNever) {
  config_.resume = Resume::Never;
  { RunStorage{config_}.append(report(0)); }
  EXPECT_EQ(failure_of([&] { RunStorage{config_}; }).code(), Errc::AlreadyExists);
}

TEST_F(RunStorageTest, RefusesToBeginAfreshWhenResumeIsMust) {
  config_.resume = Resume::Must;
  EXPECT_EQ(failure_of([&] { RunStorage{config_}; }).code(), Errc::NotFound);
  EXPECT_FALSE(fs::exists(run()));
  config_.resume = Resume::Auto;
  {
    RunStorage storage{config_};
    (void)commit(storage, 0);
  }
  config_.resume = Resume::Must;
  EXPECT_EQ(RunStorage{config_}.found().checkpoints.size(), 1u);
}

TEST_F(RunStorageTest, SaysWhichPathCannotBeWritten) {
  write(root_ / "file", "");
  config_.storage_path = root_ / "file" / "below";
  const auto failure = failure_of([&] { RunStorage{config_}; });
  EXPECT_EQ(failure.code(), Errc::StorageUnavailable);
  EXPECT_THAT(failure.what(), HasSubstr((root_ / "file" / "below").string()));
}

TEST_F(RunStorageTest, WritesAResultThatReadsBack) {
  Result result;
  {
    RunStorage storage{config_};
    storage.append(report(0));
    result.path = storage.path();
    result.history = {report(0)};
    result.checkpoints = {commit(storage, 0, 0.5)};
    result.checkpoint = result.best_checkpoint = result.checkpoints[0];
    result.metrics = report(0).metrics;
    storage.finish(result);
  }
  const auto back = Result::from_path(run());
  EXPECT_TRUE(back.ok());
  EXPECT_EQ(back.metrics, result.metrics);
  EXPECT_EQ(back.history.size(), 1u);
  EXPECT_EQ(back.best_checkpoint->checkpoint, result.best_checkpoint->checkpoint);
  EXPECT_FALSE(fs::exists(run() / ".staging"));
}

TEST_F(RunStorageTest, ReadsARunThatBrokeOff) {
  {
    RunStorage storage{config_};
    storage.append(report(0));
    (void)commit(storage, 0);
  }
  const auto back = Result::from_path(run());
  EXPECT_EQ(back.history.size(), 1u);
  EXPECT_EQ(back.checkpoint->index, 0u);
  ASSERT_TRUE(back.error);
  EXPECT_EQ(back.error->code, Errc::Aborted);
}

TEST_F(RunStorageTest, SaysThatThereIsNoRun) {
  EXPECT_EQ(failure_of([&] { (void)Result::from_path(root_ / "none"); }).code(), Errc::NotFound);
  EXPECT_EQ(failure_of([&] { (void)Result::from_path(root_); }).code(), Errc::NotFound);
}

}  // namespace
}  // namespace troupe

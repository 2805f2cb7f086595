#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>
#include <troupe/remote_run.hpp>
#include <troupe/run_storage.hpp>
#include <troupe/torch_trainer.hpp>

#include "../checkpoint/s3_server.hpp"
#include "scenario.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

/// Whole runs whose storage_path is a real S3 server.
class S3RunTest : public testing::Test {
 protected:
  TempDir directory_;
  std::unique_ptr<S3Server> server_;
  TrainerOptions options_;
  std::atomic<std::uint64_t> resumed_from_{99};

  void SetUp() override {
    if (const auto why = S3Server::missing(); !why.empty()) GTEST_SKIP() << why;
    server_ = std::make_unique<S3Server>(directory_.path() / "s3");
    server_->make_bucket("bucket");
    options_.run.name = "run";
    options_.run.storage_path = server_->url("bucket/some/prefix");
    options_.run.staging_path = directory_.path() / "staging";
    options_.run.progress = false;
    options_.run.upload_timeout = 30s;
  }

  /// Two ranks that report `num_checkpoints`, each of 12 MiB, so that it goes up in parts.
  Result fit(int num_checkpoints, std::function<void(int)> between = {}) {
    char program[] = "test";
    char* argv[] = {program, nullptr};
    const Session session{1, argv, {{"train", [&](TrainContext& context, const Config&) {
                                       const bool first = context.world_rank() == 0;
                                       if (const auto from = context.get_checkpoint(); from && first) resumed_from_ = read(from->path() / "number");
                                       for (int i = 0; i < num_checkpoints; ++i) {
                                         const auto path = context.checkpoint_dir();
                                         if (first) std::ofstream{path / "number"} << i;
                                         std::ofstream{path / ("rank" + std::to_string(context.world_rank()))} << std::string(6 << 20, static_cast<char>('a' + i));
                                         context.report({{"i", i}}, Checkpoint{path, 2});
                                         context.barrier();
                                         if (first && between) between(i);
                                       }
                                     }}}};
    options_.scaling.num_workers = 2;
    return TorchTrainer{session, "train", {}, options_}.fit();
  }
  static std::uint64_t read(const fs::path& file) {
    std::uint64_t number = 0;
    std::ifstream{file} >> number;
    return number;
  }
  std::vector<std::uint64_t> stored() {
    const auto store = open_s3_store(parse_store_url(options_.run.storage_path.text()));
    std::vector<std::uint64_t> found;
    for (const auto& record : RemoteRun{*store, "some/prefix/run"}.read().checkpoints) found.push_back(record.index);
    return found;
  }
};

TEST_F(S3RunTest, IsUploadedAndGoesOnOnAnotherHost) {
  options_.run.checkpoint.num_to_keep = 2;
  const auto result = fit(3);
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_THAT(stored(), ElementsAre(1, 2));
  fs::remove_all(options_.run.staging_path);  // another host
  const auto again = fit(1);
  ASSERT_TRUE(again.ok()) << again.error->message;
  EXPECT_EQ(resumed_from_, 2u);
  EXPECT_EQ(again.history.size(), 8u);
  EXPECT_THAT(stored(), ElementsAre(2, 3));
}

TEST_F(S3RunTest, OutlastsAServerThatIsKilledAndStartedAgain) {
  const auto result = fit(4, [&](int i) {
    if (i == 1) server_->kill();
    if (i == 2) server_->start();
  });
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_THAT(stored(), ElementsAre(0, 1, 2, 3));
}

TEST_F(S3RunTest, TrainsOnWithoutItsServer) {
  options_.run.upload_timeout = 1s;
  const auto result = fit(3, [&](int i) {
    if (i == 0) server_->kill();
  });
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(result.checkpoints.size(), 3u);
  server_->start();
  options_.run.upload_timeout = 30s;
  (void)fit(0);  // what is missing there goes up
  EXPECT_THAT(stored(), ElementsAre(0, 1, 2));
}

TEST_F(S3RunTest, RefusesAWrongKeyAtOnce) {
  S3Server::use_key("key", "wrong-4711");
  const auto result = fit(1);
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::StorageUnavailable);
  EXPECT_THAT(result.error->message, HasSubstr("check AWS_ACCESS_KEY_ID"));
  EXPECT_THAT(result.error->message, Not(HasSubstr("4711")));
}

TEST_F(S3RunTest, RefusesABucketThatIsNotThere) {
  options_.run.storage_path = server_->url("nobucket/x");
  EXPECT_EQ(fit(1).error->code, Errc::NotFound);
}

// The program starts again as a driver that is killed in the middle of an upload.
TEST_F(S3RunTest, AnUploadThatIsKilledLeavesNoCheckpoint) {
  for (const auto delay : {30ms, 60ms, 90ms, 120ms, 180ms}) {
    const auto name = "killed" + std::to_string(delay.count());
    ::setenv("TROUPE_TEST_S3_URL", options_.run.storage_path.text().c_str(), 1);
    ::setenv("TROUPE_TEST_S3_NAME", name.c_str(), 1);
    ::setenv("TROUPE_TEST_STORAGE", directory_.path().c_str(), 1);
    const pid_t child = ::fork();
    if (child == 0) {
      ::execl("/proc/self/exe", "s3_run_test", "--gtest_filter=Driver.UploadsUntilKilled", "--gtest_also_run_disabled_tests", nullptr);
      ::_exit(9);
    }
    const auto uploads = server_->root() / "bucket" / "some" / "prefix" / name;
    for (int i = 0; i < 1000 && !fs::exists(uploads); ++i) std::this_thread::sleep_for(10ms);
    std::this_thread::sleep_for(delay);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto store = open_s3_store(parse_store_url(options_.run.storage_path.text()));
    RemoteRun remote{*store, "some/prefix/" + name};
    const auto contents = remote.read();
    for (const auto& record : contents.checkpoints) {
      remote.download_checkpoint("checkpoint_00000" + std::to_string(record.index), directory_.path() / name);
    }
    RecordProperty("whole_after_" + std::to_string(delay.count()), static_cast<int>(contents.checkpoints.size()));
    RecordProperty("broken_off_after_" + std::to_string(delay.count()), static_cast<int>(contents.leftovers.size()));
  }
  ::unsetenv("TROUPE_TEST_S3_URL");
}

TEST(Driver, UploadsUntilKilled) {
  const char* url = std::getenv("TROUPE_TEST_S3_URL");
  const char* name = std::getenv("TROUPE_TEST_S3_NAME");
  const char* root = std::getenv("TROUPE_TEST_STORAGE");
  if (!url || !name || !root) GTEST_SKIP() << "started by AnUploadThatIsKilledLeavesNoCheckpoint only";
  RunConfig run;
  run.name = name;
  run.storage_path = fs::path{root} / "local";
  const auto store = open_s3_store(parse_store_url(url));
  RemoteRun remote{*store, "some/prefix/" + run.name};
  RunStorage storage{run};
  for (std::uint64_t i = 0; i < 8; ++i) {
    const auto staged = storage.path() / ".staging" / "s";
    fs::create_directories(staged);
    for (const auto* file : {"a", "b", "c"}) std::ofstream{staged / file} << std::string(8 << 20, static_cast<char>('a' + i));
    remote.upload_checkpoint(storage.commit({i, {}, {{0, staged.string()}}}).checkpoint.path());
  }
}

}  // namespace
}  // namespace troupe

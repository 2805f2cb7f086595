#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <fstream>
#include <chrono>
#include <mutex>
#include <thread>
#include <troupe/remote_run.hpp>

#include "../../actors/checkpoint_keeper.hpp"
#include "../checkpoint/faulty_store.hpp"
#include "scenario.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Opens and closes; calls wait while it is closed.
class Gate {
 public:
  void set(bool open) {
    {
      const std::lock_guard lock{mutex_};
      open_ = open;
    }
    moved_.notify_all();
  }
  void wait() {
    std::unique_lock lock{mutex_};
    moved_.wait(lock, [&] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable moved_;
  bool open_ = true;
};

/// A CheckpointKeeper whose store is a directory that can be slow or broken; the test plays the Trainer.
class KeeperUploadTest : public testing::Test {
 protected:
  struct Config : caf::actor_system_config {
    Config() { register_types(*this); }
  };
  TempDir root_;
  Gate gate_;
  std::atomic<bool> broken_{false};
  Config config_;
  caf::actor_system system_{config_};
  caf::scoped_actor trainer_{system_};
  caf::actor keeper_;
  RunConfig run_;

  void SetUp() override {
    fs::create_directories(root_.path() / "store");
    run_.name = "run";
    run_.storage_path = "s3://bucket/some";
    run_.staging_path = root_.path() / "here";
    run_.upload_timeout = 20s;
  }
  void TearDown() override {
    gate_.set(true);
    if (keeper_) caf::anon_send_exit(keeper_, caf::exit_reason::user_shutdown);
  }

  RunOpened open() {
    start();
    return await<RunOpened>();
  }
  void start() {
    keeper_ = spawn_checkpoint_keeper_with(system_, trainer_, [this](const RunConfig& run, auto) {
      auto plan = [this](int, const std::string& verb, const std::string&) {
        if (verb == "put") gate_.wait();
        return broken_ && verb == "put" ? std::optional{Fault{StoreError::Connection}} : std::nullopt;
      };
      RetryPolicy policy;
      policy.deadline = run.upload_timeout;
      return with_retries(std::make_unique<FaultyStore>(make_directory_store(root_.path() / "store"), plan), policy, std::make_unique<FakeStoreClock>());
    });
    trainer_->send(keeper_, OpenRun{run_});
  }
  template <class Message>
  Message await() {
    std::optional<Message> found;
    trainer_->receive([&](Message& message) { found = std::move(message); },
                      caf::after(30s) >> [] { throw std::runtime_error{"the keeper does not answer"}; });
    return std::move(*found);
  }
  /// Whether such a message comes within 100 ms.
  template <class Message>
  bool comes() {
    bool came = false;
    trainer_->receive([&](const Message&) { came = true; }, caf::after(100ms) >> [] {});
    return came;
  }
  void commit(std::uint64_t index) {
    const auto staged = here() / ".staging" / ("s" + std::to_string(index));
    fs::create_directories(staged);
    std::ofstream{staged / "model"} << "weights" << index;
    trainer_->send(keeper_, CommitCheckpoint{{index, {}, {{0, staged.string()}}}});
  }
  void end() {
    trainer_->send(keeper_, FinishRun{});
    (void)await<RunFinished>();
  }
  fs::path here() const { return root_.path() / "here" / "run"; }
  std::vector<std::uint64_t> stored() const {
    const auto store = make_directory_store(root_.path() / "store");
    std::vector<std::uint64_t> found;
    for (const auto& record : RemoteRun{*store, "some/run"}.read().checkpoints) found.push_back(record.index);
    return found;
  }
};

TEST_F(KeeperUploadTest, UploadsBesideCommits) {
  (void)open();
  gate_.set(false);
  commit(1);
  commit(2);
  EXPECT_EQ(await<CheckpointKept>().checkpoint.index, 1u);
  EXPECT_EQ(await<CheckpointKept>().checkpoint.index, 2u);
  EXPECT_THAT(stored(), IsEmpty());
  gate_.set(true);
  EXPECT_EQ(await<CheckpointUploaded>().url, (root_.path() / "store").string() + "/some/run/checkpoint_000001");
  EXPECT_EQ(await<CheckpointUploaded>().index, 2u);
  end();
  EXPECT_THAT(stored(), ElementsAre(1, 2));
  for (const auto* file : {"reports.jsonl", "result.json"}) EXPECT_TRUE(fs::exists(root_.path() / "store/some/run" / file)) << file;
}

TEST_F(KeeperUploadTest, WaitsForUploadsAtTheEnd) {
  (void)open();
  gate_.set(false);
  commit(1);
  (void)await<CheckpointKept>();
  trainer_->send(keeper_, FinishRun{});
  EXPECT_FALSE(comes<RunFinished>());
  gate_.set(true);
  (void)await<RunFinished>();
  EXPECT_THAT(stored(), ElementsAre(1));
}

TEST_F(KeeperUploadTest, UnderSyncACheckpointCountsWhenItIsStored) {
  run_.checkpoint.checkpoint_upload_mode = CheckpointUploadMode::Sync;
  (void)open();
  gate_.set(false);
  commit(1);
  trainer_->send(keeper_, SettleRun{});
  EXPECT_FALSE(comes<CheckpointKept>());
  EXPECT_FALSE(comes<RunSettled>());
  gate_.set(true);
  EXPECT_EQ(await<CheckpointKept>().checkpoint.index, 1u);
  EXPECT_THAT(stored(), ElementsAre(1));
  (void)await<RunSettled>();
  end();
}

TEST_F(KeeperUploadTest, UnderSyncAFailedUploadEndsTheRun) {
  run_.checkpoint.checkpoint_upload_mode = CheckpointUploadMode::Sync;
  (void)open();
  broken_ = true;
  commit(1);
  const auto failed = await<StorageFailed>();
  EXPECT_EQ(failed.code, Errc::StorageUnavailable);
  EXPECT_THAT(failed.text, HasSubstr("checkpoint_000001"));
}

TEST_F(KeeperUploadTest, UnderAsyncAFailedUploadIsAWarningAndIsTriedAgainAtTheEnd) {
  (void)open();
  broken_ = true;
  commit(1);
  (void)await<CheckpointKept>();
  EXPECT_THAT(await<RunWarning>().text, HasSubstr("connection lost"));  // of reports.jsonl
  EXPECT_THAT(await<RunWarning>().text, HasSubstr("the upload of checkpoint_000001 failed"));
  broken_ = false;
  end();
  EXPECT_THAT(stored(), ElementsAre(1));
}

TEST_F(KeeperUploadTest, NoUploadStoresReportsAndResultOnly) {
  run_.checkpoint.checkpoint_upload_mode = CheckpointUploadMode::NoUpload;
  (void)open();
  commit(1);
  (void)await<CheckpointKept>();
  end();
  EXPECT_THAT(stored(), IsEmpty());
  EXPECT_TRUE(fs::exists(root_.path() / "store/some/run/result.json"));
  EXPECT_TRUE(fs::exists(here() / "checkpoint_000001"));
}

TEST_F(KeeperUploadTest, KeepsTheSameCheckpointsInTheStore) {
  run_.checkpoint.num_to_keep = 2;
  (void)open();
  for (std::uint64_t i = 1; i <= 5; ++i) commit(i);
  for (std::uint64_t i = 1; i <= 5; ++i) (void)await<CheckpointKept>();
  end();
  EXPECT_THAT(stored(), ElementsAre(4, 5));
  EXPECT_FALSE(fs::exists(here() / "checkpoint_000003"));
  EXPECT_TRUE(fs::exists(here() / "checkpoint_000004"));
}

TEST_F(KeeperUploadTest, GoesOnFromTheStoreOnAnotherHostAndKeepsItsRule) {
  (void)open();
  for (std::uint64_t i = 1; i <= 3; ++i) commit(i);
  end();
  fs::remove_all(root_.path() / "here");
  keeper_ = {};
  run_.checkpoint.num_to_keep = 2;
  run_.resume = Resume::Must;
  const auto opened = open();
  ASSERT_EQ(opened.contents.checkpoints.size(), 1u);
  EXPECT_EQ(opened.contents.checkpoints[0].index, 3u);
  const auto old_result = root_.path() / "store/some/run/result.json";
  for (int wait = 0; wait < 500 && fs::exists(old_result); ++wait) std::this_thread::sleep_for(std::chrono::milliseconds{10});  // the uploader's turn
  EXPECT_FALSE(fs::exists(old_result));
  commit(4);
  (void)await<CheckpointKept>();
  end();
  EXPECT_THAT(stored(), ElementsAre(3, 4));
}

TEST_F(KeeperUploadTest, RefusesARunThatTheStoreHasWhenResumeIsNever) {
  (void)open();
  commit(1);
  end();
  fs::remove_all(root_.path() / "here");
  keeper_ = {};
  run_.resume = Resume::Never;
  start();
  EXPECT_EQ(await<StorageFailed>().code, Errc::AlreadyExists);
}

TEST_F(KeeperUploadTest, StopsWaitingWhenToldTo) {
  (void)open();
  gate_.set(false);
  commit(1);
  (void)await<CheckpointKept>();
  trainer_->send(keeper_, FinishRun{});
  trainer_->send(keeper_, GiveUpUploads{});
  EXPECT_THAT(await<RunWarning>().text, HasSubstr("are given up"));
  gate_.set(true);
  (void)await<RunFinished>();
}

TEST_F(KeeperUploadTest, StopsWaitingAtTheDeadline) {
  run_.upload_timeout = 200ms;
  (void)open();
  gate_.set(false);
  commit(1);
  (void)await<CheckpointKept>();
  trainer_->send(keeper_, FinishRun{});
  EXPECT_THAT(await<RunWarning>().text, HasSubstr("are given up"));
  gate_.set(true);  // a call under way ends by its own timeout
  (void)await<RunFinished>();
}

TEST_F(KeeperUploadTest, KeepsAPostMortemHereAndInTheStore) {
  (void)open();
  trainer_->send(keeper_, KeepPostMortem{"postmortem_1", "# page\n", "{}\n"});
  end();
  for (const auto& place : {here(), root_.path() / "store" / "some" / "run"}) {
    for (const auto& [name, text] : {std::pair{"postmortem_1.md", "# page"}, std::pair{"postmortem_1.json", "{}"}}) {
      std::ifstream file{place / name};
      std::string line;
      std::getline(file, line);
      EXPECT_EQ(line, text) << place / name;
    }
  }
}

TEST_F(KeeperUploadTest, OnlyWarnsWhenAPostMortemCannotBeWritten) {
  (void)open();
  fs::create_directories(here() / "postmortem_1.md" / "in the way");
  trainer_->send(keeper_, KeepPostMortem{"postmortem_1", "# page\n", "{}\n"});
  EXPECT_THAT(await<RunWarning>().text, HasSubstr("postmortem_1 could not be written"));
  end();
}

}  // namespace
}  // namespace troupe

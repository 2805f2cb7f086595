#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/manifest.hpp>
#include <troupe/remote_run.hpp>
#include <troupe/run_storage.hpp>

#include "faulty_store.hpp"
#include "store_fixtures.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// A run here, and its counterpart in a store that is a directory.
class RemoteRunTest : public StoreTest {
 protected:
  RunConfig config_;
  std::unique_ptr<ObjectStore> store_;
  std::unique_ptr<RemoteRun> remote_;

  void SetUp() override {
    fs::create_directories(root_ / "store");
    config_.storage_path = root_ / "here";
    config_.name = "run";
    store_ = make_directory_store(root_ / "store");
    remote_ = std::make_unique<RemoteRun>(*store_, "some/run");
  }
  fs::path run() const { return root_ / "here" / "run"; }
  fs::path there() const { return root_ / "store" / "some" / "run"; }

  /// Commits checkpoints, each with its report.
  void commit(const std::vector<std::uint64_t>& indices, const std::string& bytes = "weights") {
    RunStorage storage{config_};
    for (const auto index : indices) {
      write("here/run/.staging/s/model", bytes + std::to_string(index));
      write("here/run/.staging/s/deep/state", "state");
      ReportRecord report;
      report.attempt = 1;
      report.index = index;
      report.metrics = Metrics{{"acc", 1.0 / static_cast<double>(1 + index)}};
      storage.append(report);
      (void)storage.commit({index, report.metrics, {{0, (run() / ".staging" / "s").string()}}});
    }
  }
  fs::path checkpoint(std::uint64_t index) const { return run() / checkpoint_name(index); }
  void upload(const std::vector<std::uint64_t>& indices) {
    remote_->upload_file(run() / "reports.jsonl");
    for (const auto index : indices) remote_->upload_checkpoint(checkpoint(index));
  }
  std::vector<std::uint64_t> stored() {
    std::vector<std::uint64_t> found;
    for (const auto& record : remote_->read().checkpoints) found.push_back(record.index);
    return found;
  }
  std::vector<std::uint64_t> here() const {
    std::vector<std::uint64_t> found;
    for (const auto& record : read_run(run()).checkpoints) found.push_back(record.index);
    return found;
  }
  BroughtDown bring() {
    fs::create_directories(run());
    return bring_down(*remote_, run(), config_.checkpoint);
  }
};

TEST_F(RemoteRunTest, UploadsACheckpointWithItsMetrics) {
  commit({3});
  upload({3});
  const auto found = remote_->read();
  ASSERT_EQ(found.checkpoints.size(), 1u);
  EXPECT_EQ(found.checkpoints[0].metrics, (Metrics{{"acc", 0.25}}));
  EXPECT_TRUE(found.has_reports);
  EXPECT_THAT(found.leftovers, IsEmpty());
  EXPECT_EQ(read(there() / "checkpoint_000003" / "deep" / "state"), "state");
}

// Whatever call fails, before or after it had its effect, and however often: no half of a checkpoint counts, and the next
// upload makes it whole.
TEST_F(RemoteRunTest, NeverShowsAHalfUploadedCheckpoint) {
  commit({1});
  for (const bool after : {false, true}) {
    bool passed = false;
    for (int at = 0; !passed; ++at) {
      fs::remove_all(there());
      FaultyStore faulty{make_directory_store(root_ / "store"),
                         [&](int call, const auto&, const auto&) { return call == at ? std::optional{Fault{StoreError::Server, after}} : std::nullopt; }};
      RemoteRun broken{faulty, "some/run"};
      try {
        broken.upload_checkpoint(checkpoint(1));
        passed = true;
      } catch (const StoreFailure&) {
        const auto contents = remote_->read();
        for (const auto& record : contents.checkpoints) EXPECT_EQ(record.index, 1u);
        if (!contents.checkpoints.empty()) {  // only the answer to the manifest was lost
          EXPECT_EQ(read(there() / "checkpoint_000001" / "model"), "weights1");
          EXPECT_EQ(read(there() / "checkpoint_000001" / "deep" / "state"), "state");
        }
      }
      EXPECT_LT(at, 50);
      remote_->upload_checkpoint(checkpoint(1));
      EXPECT_THAT(stored(), ElementsAre(1));
    }
  }
}

// The store has a checkpoint of the same name and sizes: at no moment do old and new files count together.
TEST_F(RemoteRunTest, NeverShowsTwoAttemptsMixed) {
  commit({1}, "old");
  fs::rename(run(), root_ / "old");
  commit({1}, "new");
  bool passed = false;
  for (int at = 0; !passed; ++at) {
    fs::remove_all(there());
    remote_->upload_checkpoint(root_ / "old" / "checkpoint_000001");
    FaultyStore faulty{make_directory_store(root_ / "store"),
                       [&](int call, const auto&, const auto&) { return call == at ? std::optional{Fault{}} : std::nullopt; }};
    RemoteRun broken{faulty, "some/run"};
    try {
      broken.upload_checkpoint(checkpoint(1));
      passed = true;
    } catch (const StoreFailure&) {
    }
    fs::remove_all(root_ / "fetched");
    if (!stored().empty()) EXPECT_NO_THROW(remote_->download_checkpoint("checkpoint_000001", root_ / "fetched")) << at;  // digests verify
    EXPECT_LT(at, 50);
  }
  EXPECT_EQ(read(there() / "checkpoint_000001" / "model"), "new1");
}

TEST_F(RemoteRunTest, NeverShowsAHalfRemovedCheckpoint) {
  commit({1});
  bool passed = false;
  for (int at = 0; !passed; ++at) {
    upload({1});
    FaultyStore faulty{make_directory_store(root_ / "store"),
                       [&](int call, const auto&, const auto&) { return call == at ? std::optional{Fault{}} : std::nullopt; }};
    RemoteRun broken{faulty, "some/run"};
    try {
      broken.remove_checkpoint("checkpoint_000001");
      passed = true;
      EXPECT_THAT(stored(), IsEmpty());
      EXPECT_FALSE(fs::exists(there() / "checkpoint_000001"));
    } catch (const StoreFailure&) {
      EXPECT_EQ(remote_->read().checkpoints.size() + remote_->read().leftovers.size(), 1u);
      const auto left = there() / "checkpoint_000001";
      EXPECT_TRUE(!fs::exists(left / "manifest.troupe") || (fs::exists(left / "model") && fs::exists(left / "deep" / "state"))) << at;
    }
  }
}

TEST_F(RemoteRunTest, DoesNotCountObjectsOfAnotherSize) {
  commit({1});
  upload({1});
  write("store/some/run/checkpoint_000001/model", "weights");
  EXPECT_THAT(stored(), IsEmpty());
  EXPECT_THAT(remote_->read().leftovers, ElementsAre("checkpoint_000001"));
}

TEST_F(RemoteRunTest, ReplacesACheckpointOfAnotherAttemptWhole) {
  commit({1}, "old");
  upload({1});
  write("store/some/run/checkpoint_000001/left_by_the_old_one", "x");
  fs::remove_all(checkpoint(1));
  commit({1}, "new");
  upload({1});
  EXPECT_THAT(stored(), ElementsAre(1));
  EXPECT_EQ(read(there() / "checkpoint_000001" / "model"), "new1");
  EXPECT_FALSE(fs::exists(there() / "checkpoint_000001" / "left_by_the_old_one"));
}

TEST_F(RemoteRunTest, DoesNotUploadWhatIsDamagedHere) {
  commit({1});
  write("here/run/checkpoint_000001/model", "w");
  try {
    upload({1});
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::FileCorrupt);
    EXPECT_THAT(failure.what(), HasSubstr("model has 1 of 8 bytes"));
  }
  EXPECT_THAT(stored(), IsEmpty());
}

// ---- going on elsewhere -----------------------------------------------------------------------------------------

TEST_F(RemoteRunTest, BringsTheNewestCheckpointAndTheReportsToANewHost) {
  commit({1, 2, 3});
  upload({1, 2, 3});
  fs::remove_all(run());
  const auto found = bring();
  EXPECT_THAT(here(), ElementsAre(3));
  EXPECT_EQ(read(checkpoint(3) / "model"), "weights3");
  EXPECT_EQ(found.remote.size(), 3u);
  EXPECT_THAT(found.warnings, IsEmpty());
  EXPECT_THAT(found.to_upload, IsEmpty());
  const RunStorage storage{config_};
  EXPECT_EQ(storage.found().history.size(), 3u);
  EXPECT_EQ(storage.found().next_report_index, 4u);
}

TEST_F(RemoteRunTest, BringsTheBestCheckpointToo) {
  commit({1, 2, 3});
  upload({1, 2, 3});
  fs::remove_all(run());
  config_.checkpoint.checkpoint_score_attribute = "acc";
  (void)bring();
  EXPECT_THAT(here(), ElementsAre(1, 3));
}

TEST_F(RemoteRunTest, TakesTheOneBeforeWhenTheNewestIsDamagedInTheStore) {
  commit({1, 2});
  upload({1, 2});
  fs::remove_all(run());
  write("store/some/run/checkpoint_000002/model", "torn");  // of another size: no checkpoint
  const auto found = bring();
  EXPECT_THAT(here(), ElementsAre(1));
  EXPECT_THAT(found.warnings, Contains(HasSubstr("checkpoint_000002")));
  EXPECT_FALSE(fs::exists(there() / "checkpoint_000002"));  // what broke off is swept
}

TEST_F(RemoteRunTest, KeepsAndUploadsWhatOnlyThisHostHas) {
  commit({1, 2});
  upload({1});
  const auto found = bring();
  EXPECT_THAT(here(), ElementsAre(1, 2));
  EXPECT_THAT(found.to_upload, ElementsAre(2));
}

TEST_F(RemoteRunTest, LetsTheStoresHistoryWin) {
  commit({1});
  upload({1});
  commit({2, 3}, "never uploaded, ");
  fs::rename(run(), root_ / "host a");
  (void)bring();  // another host goes on from 1
  commit({2}, "of host b, ");
  write("here/run/reports.jsonl", read(run() / "reports.jsonl") + "{\"attempt\": 2, \"rank\": 0, \"index\": 2, \"time_s\": 1.0, \"metrics\": {}}\n");
  upload({2});
  fs::remove_all(run());
  fs::rename(root_ / "host a", run());
  const auto found = bring();
  EXPECT_THAT(here(), ElementsAre(1, 2));
  EXPECT_EQ(read(checkpoint(2) / "model"), "of host b, 2");
  EXPECT_THAT(found.to_upload, IsEmpty());
  EXPECT_THAT(found.warnings, Contains(HasSubstr("another history")));
  EXPECT_EQ(read(run() / "reports.jsonl"), read(there() / "reports.jsonl"));
}

TEST_F(RemoteRunTest, FetchesAgainWhatIsDamagedHere) {
  commit({1, 2});
  upload({1, 2});
  write("here/run/checkpoint_000002/model", "damaged");
  const auto found = bring();
  EXPECT_EQ(read(checkpoint(2) / "model"), "weights2");
  EXPECT_THAT(found.warnings, Contains(HasSubstr("damaged")));
}

// Whatever call fails while it is brought down: what is there afterwards is whole, and the next time it goes on.
TEST_F(RemoteRunTest, BringsDownWholeOrNotAtAll) {
  commit({1, 2});
  upload({1, 2});
  bool passed = false;
  for (int at = 0; !passed; ++at) {
    fs::remove_all(run());
    fs::create_directories(run());
    FaultyStore faulty{make_directory_store(root_ / "store"),
                       [&](int call, const auto&, const auto&) { return call == at ? std::optional{Fault{StoreError::Truncated}} : std::nullopt; }};
    RemoteRun broken{faulty, "some/run"};
    try {
      (void)bring_down(broken, run(), config_.checkpoint);
      passed = true;
    } catch (const StoreFailure&) {
      EXPECT_THAT(here(), IsEmpty());
      EXPECT_THAT(read_run(run()).warnings, IsEmpty());
    }
    (void)bring();
    EXPECT_THAT(here(), ElementsAre(2));
    EXPECT_LT(at, 50);
  }
}

TEST_F(RemoteRunTest, RefusesAManifestThatLeavesItsDirectory) {
  commit({1});
  upload({1});
  const auto text = read(there() / "checkpoint_000001" / "manifest.troupe");
  auto manifest = manifest_from_bytes(std::as_bytes(std::span{text}), "manifest");
  for (auto& file : manifest.files) {
    if (file.name == "model") file.name = "../../../evil";
  }
  write("store/some/run/checkpoint_000001/manifest.troupe", to_bytes(manifest));
  write("store/evil", "weights1");
  EXPECT_THAT(stored(), IsEmpty());
}

}  // namespace
}  // namespace troupe

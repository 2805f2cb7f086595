// Runs on nodes that have disks of their own: directories of this test, bound over the run's in each agent's mount namespace.
#include "cluster_run.hpp"

#include <troupe/checkpoint_files.hpp>
#include <troupe/node_parts.hpp>
#include <troupe/run_storage.hpp>

#include <algorithm>

namespace troupe {

Session* session = nullptr;

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::HasSubstr;
using testing::Not;

class ClusterDisks : public ClusterRun {
 protected:
  void SetUp() override {
    ClusterRun::SetUp();
    storage_ = directory_.path() / "storage";
    fs::create_directories(storage_);
    options_.run.storage_path = storage_;
    options_.run.failure.max_failures = 3;
    config_ = Config{{"steps", 30}, {"every", 10}};
  }

  fs::path storage_;

  /// Where node `name` has what is at storage_ for others.
  fs::path disk(const std::string& name) const { return directory_.path() / ("disk_" + name); }
  fs::path part(const std::string& node, std::uint64_t index) const { return disk(node) / "run" / checkpoint_name(index); }
  fs::path whole(std::uint64_t index) const { return storage_ / "run" / checkpoint_name(index); }

  void start_with_disk(const std::string& name) {
    fs::create_directories(disk(name));
    setenv("TROUPE_TEST_HIDE", storage_.c_str(), 1);
    setenv("TROUPE_TEST_DISK", disk(name).c_str(), 1);
    start_agent(name, 2);
    unsetenv("TROUPE_TEST_HIDE");
    unsetenv("TROUPE_TEST_DISK");
  }
  /// False: it is not allowed here.
  [[nodiscard]] bool open_with_disks(const std::vector<std::string>& names) {
    open();
    for (const auto& name : names) start_with_disk(name);
    return cluster_->wait_for_nodes(static_cast<int>(names.size()), 5s);
  }
  static std::map<int, std::string> digests(const Result& result) {
    std::map<int, std::string> found;
    for (const auto& report : result.history) {
      if (const auto* digest = report.metrics.find("digest")) found[report.rank] = std::get<std::string>(*digest);
    }
    return found;
  }
  /// What a run ends with that nothing disturbs, on threads of this process.
  std::map<int, std::string> undisturbed() {
    auto options = options_;
    options.cluster.reset();
    options.on_report = nullptr;
    options.scaling.placement = Placement::Threads;
    options.scaling.num_workers = 4;
    options.run.name = "reference";
    return digests(TorchTrainer{*session, "sharded", config_, options}.fit());
  }
  static std::int64_t began(const Result& result) {
    const auto* found = result.metrics.find("began");
    return found ? std::get<std::int64_t>(*found) : -1;
  }
  static void flip(const fs::path& file, std::uint64_t at) {
    std::fstream stream{file, std::ios::binary | std::ios::in | std::ios::out};
    stream.seekg(static_cast<std::streamoff>(at));
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(static_cast<std::streamoff>(at));
    stream.put(byte);
  }
  static int count_checkpoints(const fs::path& run) {
    return static_cast<int>(std::count_if(fs::directory_iterator{run}, fs::directory_iterator{}, [](const auto& entry) { return index_of_checkpoint(entry.path().filename().string()).has_value(); }));
  }
};

#define OPEN_WITH_DISKS(...) \
  if (!open_with_disks({__VA_ARGS__})) GTEST_SKIP() << "no mount namespace may be made here"

TEST_F(ClusterDisks, HaveAWholeCheckpointOnTheHeadsAndPartsOnTheNodes) {
  OPEN_WITH_DISKS("a", "b");
  const auto result = run("sharded", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(digests(result), undisturbed());
  ASSERT_EQ(result.checkpoints.size(), 3u);
  for (const auto& record : result.checkpoints) EXPECT_THAT(verify_checkpoint(record.checkpoint.path()), testing::IsEmpty());
  EXPECT_EQ(result.checkpoint->checkpoint.path(), whole(2));
  EXPECT_TRUE(fs::exists(whole(2) / "config.json"));
  EXPECT_THAT(file(whole(2) / nodes_name), AllOf(HasSubstr("\"a\""), HasSubstr("\"b\"")));
  EXPECT_THAT(result.warnings, Contains(HasSubstr("node b does not see " + (storage_ / "run").string())));
  for (const auto* node : {"a", "b"}) {
    const auto note = read_part_note(part(node, 2));
    ASSERT_TRUE(note.has_value()) << node;
    EXPECT_EQ(note->node, node);
    EXPECT_THAT(verify_part(part(node, 2), *note), testing::IsEmpty());
    EXPECT_FALSE(fs::exists(part(node, 2) / (node == std::string("a") ? "rank_00002.troupe" : "rank_00000.troupe")));
  }
}

TEST_F(ClusterDisks, OutliveANodeWithItsDisk) {
  OPEN_WITH_DISKS("a", "b", "c");
  config_.set("steps", 60);
  config_.set("step_ms", 20);
  const auto expected = undisturbed();
  const auto result = run("sharded", 4, [&] {
    std::this_thread::sleep_for(250ms);
    kill_agent("b");
  });
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(digests(result), expected);
  EXPECT_GE(began(result), 10);
  EXPECT_TRUE(fs::exists(part("c", result.checkpoint->index) / part_note_name));
}

TEST_F(ClusterDisks, ServeARunThatIsTakenUpAgain) {
  OPEN_WITH_DISKS("a", "b");
  const auto first = run("sharded", 4);
  ASSERT_TRUE(first.ok()) << text_of(first);
  config_.set("steps", 50);
  const auto second = run("sharded", 4);
  ASSERT_TRUE(second.ok()) << text_of(second);
  EXPECT_EQ(began(second), 30);
  EXPECT_EQ(digests(second), undisturbed());
  EXPECT_FALSE(fs::exists(part("a", 2) / part_note_name)) << "it was made whole";
  EXPECT_THAT(verify_checkpoint(part("a", 2)), testing::IsEmpty());
}

TEST_F(ClusterDisks, AreMendedWhereAPartIsDamaged) {
  OPEN_WITH_DISKS("a", "b");
  ASSERT_TRUE(run("sharded", 4).ok());
  const auto weights = part("b", 2) / "model.safetensors";
  flip(weights, fs::file_size(weights) - 5);  // rank 3's
  config_.set("steps", 40);
  const auto result = run("sharded", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(began(result), 30);
  EXPECT_EQ(digests(result), undisturbed());
  EXPECT_THAT(result.warnings, Contains(AllOf(HasSubstr("node b"), HasSubstr("checkpoint_000002/model.safetensors: bytes "), HasSubstr("damaged on its disk"))));
}

TEST_F(ClusterDisks, MendTheHeads) {
  OPEN_WITH_DISKS("a", "b");
  ASSERT_TRUE(run("sharded", 4).ok());
  const auto weights = whole(2) / "model.safetensors";
  flip(weights, fs::file_size(weights) - 5);
  config_.set("steps", 40);
  const auto result = run("sharded", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(began(result), 30);
  EXPECT_EQ(digests(result), undisturbed());
  EXPECT_THAT(result.warnings, Contains(AllOf(HasSubstr(weights.string() + ": bytes "), HasSubstr("damaged on this host's disk"))));
  EXPECT_THAT(verify_checkpoint(whole(2)), testing::IsEmpty());
}

TEST_F(ClusterDisks, OutliveTheHeadsDisk) {
  OPEN_WITH_DISKS("a", "b");
  ASSERT_TRUE(run("sharded", 4).ok());
  fs::remove_all(storage_ / "run");
  config_.set("steps", 40);
  const auto result = run("sharded", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(began(result), 30);
  EXPECT_EQ(digests(result), undisturbed());
  EXPECT_THAT(result.warnings, Contains(HasSubstr("checkpoint_000002 was not on this host's disk; it was made of nodes' parts")));
}

TEST_F(ClusterDisks, GiveAnOlderCheckpointWhenOneCannotBeMadeWhole) {
  OPEN_WITH_DISKS("a", "b", "c");
  ASSERT_TRUE(run("sharded", 4).ok());
  fs::remove_all(whole(2));
  kill_agent("b");
  while (cluster_->status().nodes.size() != 3 || std::ranges::count(cluster_->status().nodes, NodeState::Away, &NodeStatus::state) != 1) std::this_thread::sleep_for(10ms);
  config_.set("steps", 40);
  const auto result = run("sharded", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(began(result), 20);
  EXPECT_EQ(digests(result), undisturbed());
  EXPECT_THAT(result.warnings, Contains(AllOf(HasSubstr("checkpoint_000002 cannot be made whole"), HasSubstr("node b, which is not here, has a part of it"))));
}

TEST_F(ClusterDisks, CommitNothingOfADamagedPart) {
  OPEN_WITH_DISKS("a", "b");
  config_.set("spoil_at", 20);
  const auto result = run("sharded", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  ASSERT_EQ(result.checkpoints.size(), 2u);
  EXPECT_EQ(result.checkpoints.front().index, 0u);
  EXPECT_EQ(result.checkpoints.back().index, 2u);
  EXPECT_THAT(result.warnings, Contains(AllOf(HasSubstr("report 1 was not kept"), HasSubstr("node b"))));
  EXPECT_FALSE(fs::exists(part("a", 1)));
}

TEST_F(ClusterDisks, KeepTheOldCheckpointWhenANodeIsCutOffDuringASave) {
  OPEN_WITH_DISKS("a", "b", "c");
  config_.set("steps", 60);
  const auto expected = undisturbed();
  // At the last rank's report of a checkpoint the head begins to bring the parts, when it has those of the one before.
  options_.scaling.num_workers = 4;
  int reports = 0;
  options_.on_report = [&](const ReportRecord& report) {
    if (!report.checkpoint || ++reports != 8) return;
    for (int look = 0; look < 1'000 && !fs::exists(whole(0)); ++look) std::this_thread::sleep_for(10ms);
    kill_agent("b");
  };
  const auto result = TorchTrainer{*session, "sharded", config_, options_}.fit();
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(digests(result), expected);
  EXPECT_GE(began(result), 10);
  for (const auto& record : result.checkpoints) EXPECT_THAT(verify_checkpoint(record.checkpoint.path()), testing::IsEmpty());
}

TEST_F(ClusterDisks, ForgetWhatRetentionRemoves) {
  OPEN_WITH_DISKS("a", "b");
  options_.run.checkpoint.num_to_keep = 1;
  config_.set("steps", 60);
  const auto result = run("sharded", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  config_.set("steps", 70);
  ASSERT_TRUE(run("sharded", 4).ok());
  EXPECT_EQ(count_checkpoints(storage_ / "run"), 1);
  for (const auto* node : {"a", "b"}) {
    for (int look = 0; look < 300 && count_checkpoints(disk(node) / "run") > 1; ++look) std::this_thread::sleep_for(10ms);  // nobody waits for a removal
    EXPECT_EQ(count_checkpoints(disk(node) / "run"), 1) << node;
  }
}

TEST_F(ClusterDisks, MayBeMixedWithNodesOfTheHeads) {
  OPEN_WITH_DISKS("b");
  start_agent("a", 2);
  ASSERT_TRUE(cluster_->wait_for_nodes(2, 5s));
  const auto result = run("sharded", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  EXPECT_EQ(digests(result), undisturbed());
  EXPECT_EQ(result.checkpoints.size(), 3u);
  EXPECT_THAT(verify_checkpoint(whole(2)), testing::IsEmpty());
  EXPECT_THAT(result.warnings, Each(Not(HasSubstr("node a"))));
  EXPECT_TRUE(fs::exists(part("b", 2) / part_note_name));
}

TEST_F(ClusterDisks, BringDirectoriesOfRanks) {
  OPEN_WITH_DISKS("a", "b");
  config_ = Config{{"elsewhere", (storage_ / "elsewhere").string()}};
  const auto result = run("own_directories", 4);
  ASSERT_TRUE(result.ok()) << text_of(result);
  ASSERT_EQ(result.checkpoints.size(), 2u);
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(file(whole(0) / "deep" / ("of_rank_" + std::to_string(rank))), "rank " + std::to_string(rank));
  }
  EXPECT_EQ(file(whole(1) / "state"), "state");
  EXPECT_EQ(file(part("a", 1) / "state"), "state");
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, troupe::cluster_cases()};
  troupe::session = &session;
  int code = 0;
  if (troupe::runs_as_other(session, argc, argv, code)) return code;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

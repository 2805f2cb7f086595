#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "../../actors/checkpoint_keeper.hpp"
#include "scenario.hpp"

namespace troupe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// What a disk did, and what it does not do.
struct Acts {
  std::set<std::uint64_t> committed;
  std::vector<std::uint64_t> removed;
  int sweeps = 0;
  int flushes = 0;
  bool removes = true, commits = true, discards = true, writes = true;
};

class ObstinateStorage final : public RunStorage {
 public:
  explicit ObstinateStorage(Acts& acts) : RunStorage("/runs/run", {}), acts_(acts) {}
  void append(const ReportRecord&) override {}
  void flush() override {
    refuse_unless(acts_.writes);
    ++acts_.flushes;
  }
  void note(const std::string&) override { refuse_unless(acts_.writes); }
  void write(const std::string&, const std::string&) override {}
  CheckpointRecord commit(const CompleteCheckpoint& checkpoint) override {
    refuse_unless(acts_.commits);
    acts_.committed.insert(checkpoint.index);
    return {Checkpoint{path() / checkpoint_name(checkpoint.index)}, checkpoint.metrics, checkpoint.index};
  }
  void discard(const CompleteCheckpoint&) override { refuse_unless(acts_.discards); }
  void remove(std::uint64_t index) override {
    refuse_unless(acts_.removes);
    acts_.removed.push_back(index);
  }
  void sweep() override { ++acts_.sweeps; }
  void finish(const Result&) override {}

 private:
  static void refuse_unless(bool does) {
    if (!does) throw Failure{Errc::StorageUnavailable, "cannot: Input/output error"};
  }
  Acts& acts_;
};

/// A CheckpointKeeper under virtual time; the test plays its Trainer and its disk.
class KeeperTest : public testing::Test {
 protected:
  VirtualTime time_;
  std::shared_ptr<Inbox> trainer_ = std::make_shared<Inbox>();
  caf::actor trainer_actor_ = time_.spawn_inbox(trainer_), keeper_;
  Acts acts_;
  RunConfig run_;

  void SetUp() override { run_.checkpoint.num_to_keep = 1; }
  void TearDown() override {
    caf::anon_send_exit(trainer_actor_, caf::exit_reason::kill);
    if (keeper_) caf::anon_send_exit(keeper_, caf::exit_reason::kill);
    time_.settle();
  }
  void open() {
    KeeperParts parts;
    parts.own_thread = false;
    parts.open_storage = [this](const RunConfig&, const auto&) { return std::make_unique<ObstinateStorage>(acts_); };
    keeper_ = spawn_checkpoint_keeper_with(time_.system(), trainer_actor_, std::move(parts));
    send(OpenRun{run_});
    ASSERT_TRUE(trainer_->take<RunOpened>());
  }
  template <class Message>
  void send(Message message) {
    caf::anon_send(keeper_, std::move(message));
    time_.settle();
  }
  CheckpointKept commit(std::uint64_t index) {
    send(CommitCheckpoint{{index, {}, {{0, "/runs/run/.staging/a"}}}});
    return trainer_->take<CheckpointKept>().value();
  }
};

TEST_F(KeeperTest, AcknowledgesACheckpointThoughAnOlderOneCannotBeRemoved) {
  open();
  (void)commit(0);
  acts_.removes = false;
  EXPECT_THAT(commit(1).removed, IsEmpty());
  EXPECT_THAT(trainer_->take<RunWarning>()->text, HasSubstr("checkpoint_000000 is not needed any more"));
  EXPECT_FALSE(trainer_->take<StorageFailed>());
}

TEST_F(KeeperTest, RemovesItWithTheNextOneAndWarnsOnce) {
  open();
  (void)commit(0);
  acts_.removes = false;
  (void)commit(1);
  (void)commit(2);
  EXPECT_EQ(trainer_->count<RunWarning>(), 2);  // of 0 and of 1
  acts_.removes = true;
  EXPECT_THAT(commit(3).removed, ElementsAre(0, 1, 2));
  EXPECT_THAT(acts_.removed, ElementsAre(0, 1, 2));
}

TEST_F(KeeperTest, KeepsTheNewestThoughAnOlderOneIsCommittedLater) {
  open();
  (void)commit(3);
  EXPECT_THAT(commit(2).removed, ElementsAre(2));
  EXPECT_THAT(acts_.removed, ElementsAre(2));
}

TEST_F(KeeperTest, TellsOfACheckpointThatCannotBeWrittenThoughItsRestCannotBeRemoved) {
  open();
  acts_.commits = acts_.discards = false;
  send(CommitCheckpoint{{0, {}, {{0, "/runs/run/.staging/a"}}}});
  EXPECT_EQ(trainer_->take<CheckpointNotKept>()->index, 0u);
  EXPECT_FALSE(trainer_->take<StorageFailed>());
  send(DiscardCheckpoint{{1, {}, {{0, "/runs/run/.staging/b"}}}});
  EXPECT_FALSE(trainer_->take<StorageFailed>());
}

TEST_F(KeeperTest, GoesOnWhenReportsCannotBeWrittenAndWritesThemOnceTheyCan) {
  using namespace std::chrono_literals;
  open();
  acts_.writes = false;
  for (int i = 0; i < 3; ++i) send(KeepReports{{ReportRecord{}}});
  EXPECT_THAT(trainer_->take<RunWarning>()->text, HasSubstr("reports wait in memory, training goes on: cannot: Input/output error"));
  time_.advance(10s);
  EXPECT_FALSE(trainer_->take<RunWarning>());
  EXPECT_FALSE(trainer_->take<StorageFailed>());
  acts_.writes = true;
  time_.advance(3s);  // nobody reports anything
  EXPECT_THAT(trainer_->take<RunWarning>()->text, HasSubstr("reports are written again"));
  EXPECT_EQ(acts_.flushes, 1);
  time_.advance(10s);
  EXPECT_EQ(acts_.flushes, 1);
}

TEST_F(KeeperTest, WarnsOfAJournalOnceAsLongAsItCannotBeWritten) {
  open();
  for (const bool writes : {false, false, true, false}) {
    acts_.writes = writes;
    send(KeepEvent{"{}"});
  }
  EXPECT_EQ(trainer_->count<RunWarning>(), 2);
}

TEST_F(KeeperTest, SweepsWhatAnAttemptHasLeft) {
  open();
  send(SettleRun{});
  EXPECT_TRUE(trainer_->take<RunSettled>());
  EXPECT_EQ(acts_.sweeps, 1);
}

TEST_F(KeeperTest, EndsSoThatItsTrainerSeesItWhenAnotherTellsItToExit) {
  caf::anon_send_exit(trainer_actor_, caf::exit_reason::kill);
  trainer_actor_ = time_.system().spawn([inbox = trainer_](caf::event_based_actor* self) -> caf::behavior {
    self->set_exit_handler([inbox](const caf::exit_msg& exit) { inbox->add(caf::make_message(exit.reason)); });
    return {[](const RunOpened&) {}};
  });
  KeeperParts parts;
  parts.own_thread = false;
  keeper_ = spawn_checkpoint_keeper_with(time_.system(), trainer_actor_, std::move(parts));
  time_.settle();
  caf::anon_send_exit(keeper_, caf::exit_reason::user_shutdown);
  time_.settle();
  EXPECT_EQ(trainer_->take<caf::error>(), caf::make_error(caf::exit_reason::user_shutdown));
}

}  // namespace
}  // namespace troupe

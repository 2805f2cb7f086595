#include "scenario.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

/// A rank whose group is the test.
class RankTest : public testing::Test {
 protected:
  caf::actor_system_config config_;
  std::unique_ptr<caf::actor_system> system_ = make_system();
  TrainFunctions functions_;
  TempDir directory_;
  std::unique_ptr<caf::scoped_actor> group_ = std::make_unique<caf::scoped_actor>(*system_);
  caf::actor rank_;

  std::unique_ptr<caf::actor_system> make_system() {
    config_.set("scheduler.max-threads", 2);
    register_types(config_);
    return std::make_unique<caf::actor_system>(config_);
  }
  void TearDown() override {
    rank_ = nullptr;
    group_.reset();
    system_.reset();
  }

  RunRank run(int rank = 0, int world_size = 1) {
    RunRank order;
    order.attempt = 3;
    order.rank = rank;
    order.world_size = world_size;
    order.function = "train";
    order.config_json = R"({"lr": 0.5, "spare": 1})";
    order.run_name = "test";
    order.run_directory = directory_.path().string();
    order.first_report_index = 7;
    return order;
  }
  void start(TrainFunction function, RunRank order) {
    functions_["train"] = std::move(function);
    rank_ = spawn_thread_rank(*system_, functions_, self_communicator(), *group_);
    (*group_)->send(rank_, std::move(order));
  }
  template <class Message>
  Message expect() {
    std::optional<Message> got;
    (*group_)->receive([&](const Message& message) { got = message; },
                       caf::after(5s) >> [] {});
    if (!got) throw std::runtime_error{std::string("no message of the wanted type: ") + typeid(Message).name()};
    return *got;
  }
};

TEST_F(RankTest, TellsWhenItStartsReportsAndIsDone) {
  start([](TrainContext& context, const Config& config) {
    (void)config.get<double>("lr");
    context.report({{"loss", 0.25}});
    context.report({{"loss", 0.125}}, Checkpoint{"/some/where"});
  }, run());
  EXPECT_EQ(expect<RankStarted>().pid, getpid());
  const auto first = expect<Reported>();
  EXPECT_EQ(first.index, 7u);
  EXPECT_EQ(first.attempt, 3u);
  EXPECT_EQ(first.metrics, (Metrics{{"loss", 0.25}}));
  const auto second = expect<Reported>();
  EXPECT_EQ(second.index, 8u);
  EXPECT_EQ(second.checkpoint, "/some/where");
  EXPECT_EQ(expect<RankDone>().unused_config_keys, std::vector<std::string>{"spare"});
}

TEST_F(RankTest, TellsWhatItsTrainFunctionThrew) {
  start([](TrainContext&, const Config&) { throw std::runtime_error{"boom"}; }, run(1, 2));
  expect<RankStarted>();
  const auto lost = expect<RankLost>();
  EXPECT_EQ(lost.error.code, Errc::TrainFunctionFailed);
  EXPECT_EQ(lost.error.message, "boom");
  EXPECT_EQ(lost.error.rank, 1);
}

TEST_F(RankTest, NamesTheTrainFunctionsThereAreWhenOneIsUnknown) {
  auto order = run();
  order.function = "trian";
  start([](TrainContext&, const Config&) {}, order);
  const auto lost = expect<RankLost>();
  EXPECT_EQ(lost.error.code, Errc::NotFound);
  EXPECT_THAT(lost.error.message, HasSubstr("it has: train"));
}

TEST_F(RankTest, WaitsInABarrierUntilTheGroupLetsItPass) {
  start([](TrainContext& context, const Config&) {
    context.barrier();
    context.report({{"got", context.broadcast_from_rank_zero("mine")}});
  }, run());
  expect<RankStarted>();
  EXPECT_EQ(expect<BarrierReached>().sequence, 0u);
  (*group_)->send(rank_, BarrierPassed{3, 0, "", Errc::Ok, ""});
  const auto reached = expect<BarrierReached>();
  EXPECT_EQ(reached.sequence, 1u);
  EXPECT_EQ(reached.bytes, "mine");
  (*group_)->send(rank_, BarrierPassed{3, 1, "theirs", Errc::Ok, ""});
  EXPECT_EQ(expect<Reported>().metrics, (Metrics{{"got", "theirs"}}));
  expect<RankDone>();
}

TEST_F(RankTest, ThrowsWhatTheGroupSaysOfAFailedBarrier) {
  start([](TrainContext& context, const Config&) { context.barrier(); }, run());
  expect<BarrierReached>();
  (*group_)->send(rank_, BarrierPassed{3, 0, "", Errc::DeadlinePassed, "rank 1 did not come"});
  const auto lost = expect<RankLost>();
  EXPECT_EQ(lost.error.code, Errc::DeadlinePassed);
  EXPECT_EQ(lost.error.message, "rank 1 did not come");
}

TEST_F(RankTest, IsFreedFromABarrierByAnAbort) {
  start([](TrainContext& context, const Config&) { context.barrier(); }, run());
  expect<BarrierReached>();
  const auto before = std::chrono::steady_clock::now();
  (*group_)->send(rank_, AbortRank{3, "rank 1 failed: boom"});
  const auto lost = expect<RankLost>();
  EXPECT_EQ(lost.error.code, Errc::Aborted);
  EXPECT_EQ(lost.error.message, "rank 1 failed: boom");
  EXPECT_LT(std::chrono::steady_clock::now() - before, 2s);  // else it would wait for ever
}

TEST_F(RankTest, DropsMessagesOfAnotherAttempt) {
  start([](TrainContext& context, const Config&) { context.barrier(); }, run());
  expect<BarrierReached>();
  (*group_)->send(rank_, AbortRank{2, "an old abort"});
  (*group_)->send(rank_, BarrierPassed{2, 0, "", Errc::DeadlinePassed, "an old barrier"});
  (*group_)->send(rank_, BarrierPassed{3, 0, "", Errc::Ok, ""});
  expect<RankDone>();
}

TEST_F(RankTest, HoldsTheNextStopCallAfterItWasCountedAndStopsWhereTold) {
  std::atomic<int> steps{0};
  start([&](TrainContext& context, const Config&) {
    while (!context.should_stop()) {
      ++steps;
      std::this_thread::sleep_for(100us);
    }
  }, run());
  expect<RankStarted>();
  while (steps < 10) std::this_thread::yield();
  (*group_)->send(rank_, CountForStop{3});
  const auto counted = expect<StopCounted>().calls;
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(steps, static_cast<int>(counted));
  (*group_)->send(rank_, StopAfter{3, counted + 5});
  EXPECT_EQ(expect<RankDone>().calls, counted + 6);
  EXPECT_EQ(steps, static_cast<int>(counted) + 5);
}

TEST_F(RankTest, EndsItsThreadWhenTheGroupDies) {
  std::atomic<bool> ended{false};
  start([&](TrainContext& context, const Config&) {
    try {
      context.barrier();
    } catch (const Failure& failure) {
      ended = failure.code() == Errc::Aborted;
      throw;
    }
  }, run());
  expect<BarrierReached>();
  group_.reset();
  rank_ = nullptr;
  system_->await_all_actors_done();
  EXPECT_TRUE(ended);
}

TEST_F(RankTest, IsLostWhenItIsToldToExitThoughItsTrainFunctionReturns) {
  start([](TrainContext& context, const Config&) {
    context.report({});
    while (!context.should_stop()) std::this_thread::yield();
  }, run());
  expect<Reported>();
  caf::anon_send_exit(rank_, caf::exit_reason::user_shutdown);
  EXPECT_EQ(expect<RankLost>().error.code, Errc::Aborted);
}

TEST_F(RankTest, IsLostWhenItIsToldToExit) {
  start([](TrainContext& context, const Config&) { context.barrier(); }, run());
  expect<BarrierReached>();
  caf::anon_send_exit(rank_, caf::exit_reason::user_shutdown);
  const auto lost = expect<RankLost>();
  EXPECT_EQ(lost.error.code, Errc::Aborted);
  EXPECT_THAT(lost.error.message, HasSubstr("told to exit"));
}

TEST_F(RankTest, MakesItsCheckpointDirectoriesBelowTheRun) {
  std::vector<std::filesystem::path> made;
  start([&](TrainContext& context, const Config&) {
    made.push_back(context.checkpoint_dir());
    made.push_back(context.checkpoint_dir());
  }, run());
  expect<RankDone>();
  EXPECT_NE(made[0], made[1]);
  for (const auto& path : made) {
    EXPECT_TRUE(std::filesystem::is_directory(path));
    EXPECT_EQ(path.parent_path(), directory_.path() / ".staging");
  }
}

TEST_F(RankTest, SharesCheckpointDirectoriesWithItsPeers) {
  std::vector<std::filesystem::path> made;
  const auto train = [&](TrainContext& context, const Config&) {
    made.push_back(context.shared_checkpoint_dir());
    std::ofstream{made.back() / ("part_" + std::to_string(context.world_rank()))} << "x";
    made.push_back(context.shared_checkpoint_dir());
  };
  start(train, run(0, 2));
  expect<RankDone>();
  start(train, run(1, 2));
  expect<RankDone>();
  ASSERT_EQ(made.size(), 4u);
  EXPECT_EQ(made[0], made[2]);
  EXPECT_EQ(made[1], made[3]);
  EXPECT_NE(made[0], made[1]);
  EXPECT_EQ(made[0].parent_path(), directory_.path() / ".staging");
  EXPECT_TRUE(std::filesystem::exists(made[0] / "part_0") && std::filesystem::exists(made[0] / "part_1"));
}

TEST_F(RankTest, RefusesAnAbsurdNumberOfWriters) {
  start([](TrainContext& context, const Config&) { context.report({}, Checkpoint{"/x", 3}); }, run(0, 2));
  const auto lost = expect<RankLost>();
  EXPECT_EQ(lost.error.code, Errc::InvalidArgument) << lost.error.message;
}

}  // namespace
}  // namespace troupe

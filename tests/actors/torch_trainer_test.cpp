#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>

#include <array>
#include <atomic>
#include <csignal>
#include <fstream>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <troupe/torch_trainer.hpp>

#include "scenario.hpp"

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

/// Whole runs with ranks that are threads, through TorchTrainer.
class TorchTrainerTest : public testing::Test {
 protected:
  TempDir directory_;
  Config config_;
  TrainerOptions options_;

  void SetUp() override {
    options_.run.name = "run";
    options_.run.storage_path = directory_.path();
    options_.run.progress = false;
    options_.run.collective_timeout = 20s;
    options_.run.stop_grace = 5s;
  }
  std::filesystem::path run_path() const { return directory_.path() / "run"; }

  Result fit(int num_workers, TrainFunction function) {
    char program[] = "test";
    char* argv[] = {program, nullptr};
    const Session session{1, argv, {{"train", std::move(function)}}};
    options_.scaling.num_workers = num_workers;
    return TorchTrainer{session, "train", config_, options_}.fit();
  }
  static Checkpoint write_checkpoint(TrainContext& context, const std::string& text, const std::string& file = "state", int num_writers = 1) {
    const auto path = context.checkpoint_dir();
    std::ofstream{path / file} << text;
    return Checkpoint{path, num_writers};
  }
  static std::string read(const std::filesystem::path& file) {
    std::string text;
    std::getline(std::ifstream{file}, text);
    return text;
  }
  /// One float summed over all ranks: a step.
  static float step(TrainContext& context, float value = 1) {
    context.communicator().all_reduce({&value, sizeof value, DType::F32}, ReduceOp::Sum).wait().or_throw();
    return value;
  }
};

class Worlds : public TorchTrainerTest, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Worlds, testing::Values(1, 2, 3, 4));

TEST_P(Worlds, RunsTheTrainFunctionOnEveryRank) {
  const int world = GetParam();
  const auto result = fit(world, [](TrainContext& context, const Config&) {
    for (int i = 0; i < 3; ++i) {
      const float sum = step(context, static_cast<float>(context.world_rank() + 1));
      context.report({{"i", i}, {"sum", static_cast<double>(sum)}});
    }
  });
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_EQ(result.history.size(), static_cast<std::size_t>(3 * world));
  EXPECT_EQ(result.metrics, (Metrics{{"i", 2}, {"sum", world * (world + 1) / 2.0}}));
  EXPECT_EQ(result.path, run_path());
  EXPECT_EQ(Result::from_path(run_path()).history.size(), result.history.size());
}

TEST_P(Worlds, StopsAllRanksAfterTheSameStep) {
  const int world = GetParam();
  std::vector<std::atomic<int>> steps(static_cast<std::size_t>(world));
  std::atomic<int> reports{0};
  options_.on_report = [&](const ReportRecord&) {
    if (++reports == 3) std::raise(SIGINT);
  };
  const auto result = fit(world, [&](TrainContext& context, const Config&) {
    auto& mine = steps[static_cast<std::size_t>(context.world_rank())];
    while (!context.should_stop()) {
      step(context);
      ++mine;
      if (mine % 100 == 0) context.report({{"step", mine.load()}});
    }
  });
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_TRUE(result.stopped_early);
  EXPECT_EQ(result.exit_code(), 130);
  for (int rank = 1; rank < world; ++rank) EXPECT_EQ(steps[static_cast<std::size_t>(rank)], steps[0]);
}

TEST_P(Worlds, HasBarriersAndABroadcastOfRankZero) {
  std::atomic<int> arrived{0};
  const int world = GetParam();
  const auto result = fit(world, [&](TrainContext& context, const Config&) {
    for (int round = 1; round <= 20; ++round) {
      ++arrived;
      context.barrier();
      if (arrived < round * world) throw std::runtime_error{"a barrier let a rank pass early"};
      context.barrier();
      const auto got = context.broadcast_from_rank_zero("rank " + std::to_string(context.world_rank()));
      if (got != "rank 0") throw std::runtime_error{"broadcast gave " + got};
    }
  });
  EXPECT_TRUE(result.ok()) << result.error->message;
}

TEST_F(TorchTrainerTest, TellsWhichRankThrewAndFreesTheOthersAtOnce) {
  std::atomic<Clock::duration::rep> threw_at{0};
  std::array<std::atomic<Clock::duration::rep>, 3> freed_after{};
  std::array<std::string, 3> what;
  const auto result = fit(3, [&](TrainContext& context, const Config&) {
    const auto rank = static_cast<std::size_t>(context.world_rank());
    step(context);
    if (rank == 1) {
      std::this_thread::sleep_for(50ms);
      threw_at = Clock::now().time_since_epoch().count();
      throw std::runtime_error{"boom"};
    }
    try {
      if (rank == 0) step(context);
      context.barrier();
    } catch (const Failure& failure) {
      freed_after[rank] = Clock::now().time_since_epoch().count() - threw_at;
      what[rank] = failure.what();
      EXPECT_EQ(failure.code(), Errc::Aborted);
      throw;
    }
  });
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::TrainFunctionFailed);
  EXPECT_EQ(result.error->message, "boom");
  EXPECT_EQ(result.error->rank, 1);
  EXPECT_EQ(result.exit_code(), 1);
  for (const std::size_t rank : {0u, 2u}) {
    EXPECT_LT(Clock::duration(freed_after[rank]), 2s);
    EXPECT_THAT(what[rank], HasSubstr("rank 1 failed: boom"));
  }
}

TEST_F(TorchTrainerTest, NamesARankThatReturnsEarlyFromACollective) {
  const auto before = Clock::now();
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    step(context);
    if (context.world_rank() == 0) step(context);
  });
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::CollectiveMismatch);
  EXPECT_THAT(result.error->message, HasSubstr("rank 1 returned early"));
  EXPECT_LT(Clock::now() - before, 5s);
}

TEST_F(TorchTrainerTest, NamesARankThatReturnsEarlyFromABarrier) {
  const auto result = fit(3, [](TrainContext& context, const Config&) {
    if (context.world_rank() != 2) context.barrier();
  });
  ASSERT_TRUE(result.error);
  EXPECT_THAT(result.error->message, HasSubstr("rank 2 has returned"));
}

TEST_F(TorchTrainerTest, LetsRanksReportDifferently) {
  const auto result = fit(3, [](TrainContext& context, const Config&) {
    for (int i = 0; i < context.world_rank(); ++i) context.report({{"rank", context.world_rank()}});
  });
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result.history.size(), 3u);
  EXPECT_EQ(result.metrics, (Metrics{{"rank", 1}}));  // rank 0 never reported
}

TEST_F(TorchTrainerTest, CallsBackForEveryReportInOrder) {
  std::vector<std::uint64_t> seen;
  options_.on_report = [&](const ReportRecord& report) { seen.push_back(report.index); };
  (void)fit(1, [](TrainContext& context, const Config&) {
    for (int i = 0; i < 1000; ++i) context.report({{"i", i}});
  });
  ASSERT_EQ(seen.size(), 1000u);
  for (std::size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], i);
}

TEST_F(TorchTrainerTest, ThrowsWhatTheCallbackThrewAfterARunThatItEnded) {
  options_.on_report = [](const ReportRecord&) { throw std::logic_error{"mine"}; };
  EXPECT_THROW((void)fit(2, [](TrainContext& context, const Config&) {
    context.report({});
    for (;;) context.barrier();
  }), std::logic_error);
}

TEST_F(TorchTrainerTest, CommitsOneCheckpointOfTwoWriters) {
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    const auto me = "rank" + std::to_string(context.world_rank());
    context.report({{"acc", 0.5}}, write_checkpoint(context, me, me, 2));
  });
  ASSERT_TRUE(result.ok()) << result.error->message;
  ASSERT_TRUE(result.checkpoint);
  EXPECT_EQ(read(result.checkpoint->checkpoint.path() / "rank0"), "rank0");
  EXPECT_EQ(read(result.checkpoint->checkpoint.path() / "rank1"), "rank1");
  EXPECT_EQ(result.history[0].checkpoint, result.checkpoint->checkpoint);
}

TEST_F(TorchTrainerTest, FailsWhenTwoWritersUseOneFileName) {
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    context.report({}, write_checkpoint(context, "x", "state", 2));
  });
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::AlreadyExists);
  EXPECT_THAT(result.error->message, HasSubstr("both wrote state"));
}

TEST_F(TorchTrainerTest, KeepsTheBestAndTheLatestCheckpoint) {
  options_.run.checkpoint.num_to_keep = 1;
  options_.run.checkpoint.checkpoint_score_attribute = "acc";
  const auto result = fit(1, [](TrainContext& context, const Config&) {
    for (const double acc : {0.1, 0.9, 0.5, 0.3}) context.report({{"acc", acc}}, write_checkpoint(context, "x"));
  });
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result.best_checkpoint->index, 1u);
  EXPECT_EQ(result.checkpoint->index, 3u);
  EXPECT_FALSE(std::filesystem::exists(run_path() / "checkpoint_000000"));
  EXPECT_TRUE(std::filesystem::exists(run_path() / "checkpoint_000001"));
  EXPECT_FALSE(std::filesystem::exists(run_path() / "checkpoint_000002"));
  EXPECT_TRUE(std::filesystem::exists(run_path() / "checkpoint_000003"));
}

TEST_F(TorchTrainerTest, ResumesFromTheNewestCheckpoint) {
  const TrainFunction train = [](TrainContext& context, const Config&) {
    const auto from = context.get_checkpoint();
    const int start = from ? std::stoi(read(from->path() / "state")) : 0;
    for (int i = start; i < start + 2; ++i) context.report({{"i", i}}, write_checkpoint(context, std::to_string(i + 1)));
  };
  EXPECT_EQ(fit(1, train).metrics, (Metrics{{"i", 1}}));
  const auto second = fit(1, train);
  EXPECT_EQ(second.metrics, (Metrics{{"i", 3}}));
  EXPECT_EQ(second.history.size(), 4u);
  EXPECT_EQ(second.history.back().index, 3u);
  EXPECT_EQ(second.checkpoints.size(), 4u);

  options_.run.resume = Resume::Never;
  EXPECT_EQ(fit(1, train).error->code, Errc::AlreadyExists);
  options_.run.resume = Resume::Must;
  EXPECT_EQ(fit(1, train).metrics, (Metrics{{"i", 5}}));
  options_.run.name = "another";
  EXPECT_EQ(fit(1, train).error->code, Errc::NotFound);
}

TEST_F(TorchTrainerTest, StartsAgainAfterAFailureFromTheNewestCheckpoint) {
  options_.run.failure.max_failures = 1;
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    if (context.get_checkpoint()) return context.report({{"resumed", read(context.get_checkpoint()->path() / "state")}});
    if (context.world_rank() == 0) context.report({}, write_checkpoint(context, "saved"));
    context.barrier();
    if (context.world_rank() == 1) throw std::runtime_error{"boom"};
    step(context);
  });
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_EQ(result.metrics, (Metrics{{"resumed", "saved"}}));
  EXPECT_EQ(result.history.back().attempt, 2u);
}

TEST_F(TorchTrainerTest, CommitsCheckpointsThatAreWrittenInTheBackground) {
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    const auto directory = context.shared_checkpoint_dir();
    const auto save = std::make_shared<PendingSave>();
    context.report({}, Checkpoint{directory, 2, save});
    std::thread{[directory, save, rank = context.world_rank()] {
      std::this_thread::sleep_for(50ms);
      std::ofstream{directory / ("part_" + std::to_string(rank))} << rank;
      save->finish({});
    }}.detach();
  });
  ASSERT_TRUE(result.ok()) << result.error->message;
  ASSERT_TRUE(result.checkpoint);
  EXPECT_EQ(read(result.checkpoint->checkpoint.path() / "part_0"), "0");
  EXPECT_EQ(read(result.checkpoint->checkpoint.path() / "part_1"), "1");
}

TEST_F(TorchTrainerTest, EndsWellWithoutACheckpointThatCouldNotBeWritten) {
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    const auto directory = context.shared_checkpoint_dir();
    std::ofstream{directory / ("part_" + std::to_string(context.world_rank()))} << "x";
    const auto save = std::make_shared<PendingSave>();
    context.report({}, Checkpoint{directory, 2, save});
    save->finish(context.world_rank() == 1 ? Outcome{Errc::StorageUnavailable, "disk full"} : Outcome{});
    context.barrier();
    context.report({{"went", "on"}});
  });
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_EQ(result.metrics, (Metrics{{"went", "on"}}));
  EXPECT_FALSE(result.checkpoint);
  EXPECT_THAT(result.warnings, testing::ElementsAre(HasSubstr("rank 1: disk full")));
}

TEST_F(TorchTrainerTest, StopsAtOnceAtTheSecondSignal) {
  options_.run.stop_grace = 30s;
  const auto before = Clock::now();
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    if (context.world_rank() == 0) {
      std::raise(SIGTERM);
      std::raise(SIGTERM);
    }
    for (;;) step(context);  // never asks should_stop()
  });
  EXPECT_TRUE(result.stopped_early);
  EXPECT_TRUE(result.ok());
  EXPECT_LT(Clock::now() - before, 10s);
}

TEST_F(TorchTrainerTest, EndsRanksByForceThatDoNotHeedTheFirstSignal) {
  options_.run.stop_grace = 300ms;
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    if (context.world_rank() == 0) std::raise(SIGTERM);
    for (;;) step(context);
  });
  EXPECT_TRUE(result.stopped_early);
  EXPECT_TRUE(result.preempted);
  EXPECT_EQ(result.exit_code(), 75);
}

TEST_F(TorchTrainerTest, TellsAnInterruptFromAPreemption) {
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    if (context.world_rank() == 0) std::raise(SIGINT);
    while (!context.should_stop()) std::this_thread::sleep_for(1ms);
  });
  EXPECT_TRUE(result.stopped_early);
  EXPECT_FALSE(result.preempted);
  EXPECT_EQ(result.exit_code(), 130);
}

TEST_F(TorchTrainerTest, IsPreemptedWhenItsTimeIsUp) {
  options_.run.time_limit = 100ms;
  const auto result = fit(2, [](TrainContext& context, const Config&) {
    while (!context.should_stop()) std::this_thread::sleep_for(1ms);
    if (context.world_rank() == 0) context.report({}, write_checkpoint(context, "in time"));
  });
  EXPECT_TRUE(result.preempted);
  EXPECT_EQ(result.exit_code(), 75);
  EXPECT_TRUE(result.checkpoint);
}

TEST_F(TorchTrainerTest, GoesOnWithAnotherNumberOfRanksWhenTold) {
  options_.scaling = ScalingConfig{3};
  options_.scaling.min_workers = 1;
  caf::actor trainer;
  std::promise<void> spawned;
  const TrainFunction train = [&, ready = spawned.get_future().share()](TrainContext& context, const Config&) {
    ready.wait();
    if (context.attempt() < 3) {
      if (context.world_rank() == 0) caf::anon_send(trainer, ResizeRun{context.attempt() == 1 ? 1 : 2});
      while (!context.should_stop()) step(context);
    }
    if (context.world_rank() != 0) return;
    context.report({{"ranks", context.world_size()}, {"before", context.previous_world_size()}}, write_checkpoint(context, "x"));
  };
  char program[] = "test";
  char* argv[] = {program, nullptr};
  const Session session{1, argv, {{"train", train}}};
  caf::actor_system_config config;
  register_types(config);
  caf::actor_system system{config};
  caf::scoped_actor self{system};
  trainer = spawn_trainer(system, session, "train", config_, options_, {self});
  spawned.set_value();
  std::optional<Result> result;
  self->receive_while([&] { return !result; })([&](RunEnded& news) { result = std::move(news.result); }, [](const RunStarted&) {},
                                               [](const ReportArrived&) {}, [](const CheckpointCommitted&) {});
  trainer = nullptr;
  ASSERT_TRUE(result->ok()) << result->error->message;
  ASSERT_EQ(result->history.size(), 3u);
  EXPECT_EQ(result->history[0].metrics, (Metrics{{"ranks", 3}, {"before", 3}}));
  EXPECT_EQ(result->history[1].metrics, (Metrics{{"ranks", 1}, {"before", 3}}));
  EXPECT_EQ(result->history[2].metrics, (Metrics{{"ranks", 2}, {"before", 1}}));
}

TEST_F(TorchTrainerTest, PutsTheSignalHandlersBack) {
  const auto before = std::signal(SIGTERM, SIG_IGN);
  (void)fit(1, [](TrainContext&, const Config&) {});
  EXPECT_EQ(std::signal(SIGTERM, before), SIG_IGN);
}

TEST_F(TorchTrainerTest, RefusesBadOptionsAndUnknownFunctions) {
  const TrainFunction nothing = [](TrainContext&, const Config&) {};
  EXPECT_THROW((void)fit(0, nothing), Failure);
  EXPECT_THROW((void)fit(16385, nothing), Failure);
  char program[] = "test";
  char* argv[] = {program, nullptr};
  const Session session{1, argv, {{"fine_tune", nothing}}};
  try {
    TorchTrainer{session, "fine_tun", {}, {}};
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::NotFound);
    EXPECT_THAT(failure.what(), HasSubstr("did you mean 'fine_tune'?"));
  }
}

TEST_F(TorchTrainerTest, WithoutAGpuUseGpuIsRefusedWithWhatIsMissing) {
  if (std::filesystem::exists("/dev/nvidia0")) GTEST_SKIP() << "this host has a GPU";
  options_.scaling.use_gpu = true;
  const auto result = fit(2, [](TrainContext&, const Config&) {});
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::Unsupported);
  EXPECT_THAT(result.error->message, HasSubstr("use_gpu: "));
}

TEST_F(TorchTrainerTest, NamesAStoragePathThatCannotBeWritten) {
  std::ofstream{directory_.path() / "file"} << "x";
  options_.run.storage_path = directory_.path() / "file" / "below";
  const auto result = fit(1, [](TrainContext&, const Config&) {});
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::StorageUnavailable);
  EXPECT_THAT(result.error->message, HasSubstr("file/below"));
}

TEST_F(TorchTrainerTest, RefusesARunThatAnotherDriverHas) {
  Result inner;
  const auto outer = fit(1, [&](TrainContext&, const Config&) { inner = fit(1, [](TrainContext&, const Config&) {}); });
  EXPECT_TRUE(outer.ok());
  ASSERT_TRUE(inner.error);
  EXPECT_EQ(inner.error->code, Errc::AlreadyExists);
}

TEST_F(TorchTrainerTest, WarnsOfConfigKeysThatNobodyRead) {
  config_ = Config{{"lr", 0.1}, {"epohcs", 3}};
  testing::internal::CaptureStderr();
  (void)fit(2, [](TrainContext&, const Config& config) { (void)config.get<double>("lr"); });
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("'epohcs'"));
}

TEST_F(TorchTrainerTest, WritesAResultFileThatPeopleCanRead) {
  (void)fit(1, [](TrainContext& context, const Config&) { context.report({{"acc", 0.5}}, write_checkpoint(context, "x")); });
  const auto json = nlohmann::json::parse(std::ifstream{run_path() / "result.json"});
  EXPECT_EQ(json["metrics"]["acc"], 0.5);
  EXPECT_EQ(json["best_checkpoint"]["path"], (run_path() / "checkpoint_000000").string());
  EXPECT_EQ(json["history"].size(), 1u);
  EXPECT_TRUE(json["error"].is_null());
}

TEST_F(TorchTrainerTest, RunsManyRanks) {
  const auto result = fit(64, [](TrainContext& context, const Config&) {
    context.barrier();
    context.report({{"rank", context.world_rank()}});
  });
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_EQ(result.history.size(), 64u);
}

}  // namespace
}  // namespace troupe

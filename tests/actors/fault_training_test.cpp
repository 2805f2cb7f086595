#include "../backends/resume_run.hpp"
#include "../backends/weights_digest.hpp"
#include "scenario.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <troupe/torch_trainer.hpp>


#include <sys/wait.h>

#include <cstdlib>

// Real training under injected faults: what it ends with must be, bit for bit, what it ends with undisturbed.
// More seeds: TROUPE_FAULT_SEEDS; a longer soak: TROUPE_SOAK_S.

namespace troupe {

Session* session = nullptr;

namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

struct Counter {
  int& value;
  [[nodiscard]] std::string state_dict() const { return std::to_string(value); }
  void load_state_dict(const std::string& bytes) { value = std::stoi(bytes); }
};

test::ResumeCase case_of(const Config& config) {
  const auto strategy = config.get<std::string>("strategy");
  auto c = strategy == "zero3" ? test::sharded(ShardingStrategy::ShardParameters) : strategy == "zero2" ? test::sharded(ShardingStrategy::ShardGradients) : test::ResumeCase{};
  c.workers = 1;
  c.checkpoint.async = true;
  return c;
}

/// Trains for so many updates; the last report has the weights' digest and where the attempt went on from.
void train(TrainContext& context, const Config& config) {
  const int updates = config.get<int>("updates"), checkpoint_every = config.get<int>("checkpoint_every");
  const std::chrono::milliseconds pause{config.get<int>("step_ms")};
  test::Training training{context, case_of(config)};
  Counter counter{training.num_updates};
  training.accelerator.register_for_checkpointing(counter);
  if (const auto copy = context.get_checkpoint()) training.accelerator.load_state(copy->path());
  const int began = training.num_updates;
  bool stopped = false;
  while (training.num_updates < updates && !stopped) {
    for (const auto& batch : training.loader) {
      training.step(batch);
      std::this_thread::sleep_for(pause);
      if (checkpoint_every > 0 && training.num_updates % checkpoint_every == 0) {
        context.report({{"update", training.num_updates}}, training.accelerator.checkpoint());
      }
      stopped = context.should_stop();
      if (stopped || training.num_updates == updates) break;
    }
  }
  if (stopped) return context.report({{"stopped_at", training.num_updates}}, training.accelerator.checkpoint());
  const auto digest = test::digest_of(training);
  (void)training.accelerator.wait_for_saves();
  if (context.world_rank() == 0) context.report({{"digest", digest}, {"began", began}, {"updates", training.num_updates}});
}

int seeds(int usual) {
  const char* wanted = std::getenv("TROUPE_FAULT_SEEDS");
  return wanted ? std::atoi(wanted) : usual;
}

class FaultTraining : public testing::Test {
 protected:
  TempDir directory_;
  TrainerOptions options_;
  nlohmann::ordered_json settings_;
  std::string name_ = "run";

  void SetUp() override {
    options_.scaling.num_workers = 2;
    options_.scaling.placement = Placement::Processes;
    options_.run.failure.max_failures = 5;
    options_.run.progress = false;
    options_.run.step_timeout = 60s;
    options_.run.collective_timeout = 60s;
    options_.run.stop_grace = 5s;
    options_.run.storage_path = directory_.path();
    settings_["strategy"] = "replicate";
    settings_["updates"] = 40;
    settings_["checkpoint_every"] = 15;
    settings_["step_ms"] = 0;
  }
  Result fit(const std::string& chaos) {
    options_.run.name = name_;
    options_.run.chaos = chaos;
    return TorchTrainer{*session, "train", Config(settings_), options_}.fit();
  }
  /// A fresh run under `chaos`.
  Result fresh(const std::string& chaos) {
    name_ = "run_" + std::to_string(++runs_);
    return fit(chaos);
  }
  static std::string digest(const Result& result) {
    const auto* found = result.metrics.find("digest");
    return found ? std::get<std::string>(*found) : "no digest: " + (result.error ? result.error->message : std::string{});
  }
  std::string undisturbed() { return digest(fresh("")); }
  std::string journal() const {
    std::ifstream file{directory_.path() / name_ / "journal.jsonl"};
    return {std::istreambuf_iterator<char>{file}, {}};
  }
  /// What one seed of these faults, on any rank at any step, makes of a run.
  void survives(const std::string& kinds, const std::string& strategy, int usual_seeds) {
    settings_["strategy"] = strategy;
    const auto expected = undisturbed();
    for (int seed = 1; seed <= seeds(usual_seeds); ++seed) {
      const auto plan = "rank=any step=2..36 kind=" + kinds + "; seed=" + std::to_string(seed);
      const auto result = fresh(plan);
      EXPECT_EQ(digest(result), expected) << strategy << ", TROUPE_CHAOS='" << plan << "'";
      EXPECT_GE(result.history.back().attempt, 2u) << plan << ": nothing has struck";
    }
  }

 private:
  int runs_ = 0;
};

TEST_F(FaultTraining, EndsWithTheSameWeightsAfterAnException) { survives("throw", "replicate", 3); }
TEST_F(FaultTraining, EndsWithTheSameWeightsAfterAKill) { survives("kill", "zero3", 3); }
TEST_F(FaultTraining, EndsWithTheSameWeightsAfterACrash) { survives("segv|abort|exit:3", "zero2", 3); }
TEST_F(FaultTraining, EndsWithTheSameWeightsAfterAStop) {
  options_.run.step_timeout = 1500ms;
  survives("stop", "zero3", 1);
}
TEST_F(FaultTraining, EndsWithTheSameWeightsAfterAHang) {
  options_.run.step_timeout = 1500ms;
  survives("hang", "replicate", 1);
}
TEST_F(FaultTraining, EndsWithTheSameWeightsAfterAWrongCollective) {
  options_.run.collective_timeout = 3s;
  survives("wrong-collective", "zero2", 2);
}
TEST_F(FaultTraining, EndsWithTheSameWeightsAfterRunningOutOfMemory) { survives("oom:64M", "replicate", 1); }
TEST_F(FaultTraining, EndsWithTheSameWeightsOnThreads) {
  options_.scaling.placement = Placement::Threads;
  survives("throw", "zero3", 3);
}
TEST_F(FaultTraining, EndsWithTheSameWeightsOnFourRanks) {
  options_.scaling.num_workers = 4;
  survives("kill|throw|segv", "zero3", 2);
}

TEST_F(FaultTraining, LosesAtMostOneStep) {
  const auto result = fresh("rank=1 step=20 kind=kill");
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_GE(result.metrics.number("began"), 19);
}

TEST_F(FaultTraining, GoesOnFromACheckpointWithoutSnapshots) {
  options_.run.failure.snapshot_every = 0;
  const auto expected = undisturbed();
  settings_["step_ms"] = 30;  // time for the checkpoint of update 30
  const auto result = fresh("rank=0 step=36 kind=kill");
  EXPECT_EQ(digest(result), expected);
  EXPECT_EQ(result.metrics.number("began"), 30);
}

TEST_F(FaultTraining, BadStorageCostsCheckpointsAndNothingElse) {
  const auto expected = undisturbed();
  for (const char* fault : {"storage-fail:1", "storage-slow:30ms"}) {
    const auto result = fresh("rank=any step=3..9 kind=" + std::string(fault));
    EXPECT_EQ(digest(result), expected) << fault;
    EXPECT_TRUE(result.checkpoint);
    EXPECT_EQ(result.warnings.empty(), std::string(fault) != "storage-fail:1") << fault;
  }
}

TEST_F(FaultTraining, APreemptedRunLosesNoStep) {
  const auto expected = undisturbed();
  name_ = "preempted";
  settings_["step_ms"] = 20;
  options_.run.time_limit = 700ms;
  const auto first = fit("");
  ASSERT_TRUE(first.preempted);
  EXPECT_EQ(first.exit_code(), 75);
  options_.run.time_limit = 0ms;
  const auto second = fit("");
  EXPECT_EQ(digest(second), expected);
  EXPECT_EQ(second.metrics.number("began"), first.metrics.number("stopped_at"));
}

TEST_F(FaultTraining, GoesOnWhereAKilledDriverWas) {
  const auto expected = undisturbed();
  name_ = "driven";
  settings_["step_ms"] = 15;  // time for the checkpoint of update 15
  for (const int snapshots : {1, 0}) {
    options_.run.failure.snapshot_every = snapshots;
    const auto driver = fork();
    if (driver == 0) {
      setenv("TROUPE_TEST_STORAGE", directory_.path().c_str(), 1);
      setenv("TROUPE_TEST_CONFIG", settings_.dump().c_str(), 1);
      setenv("TROUPE_TEST_SNAPSHOTS", std::to_string(snapshots).c_str(), 1);
      setenv("TROUPE_CHAOS", "rank=1 step=33 kind=driver-kill", 1);
      execl("/proc/self/exe", "fault_training_test", "--fit", nullptr);
      _exit(127);
    }
    int status = 0;
    waitpid(driver, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    const auto result = fit("");
    EXPECT_EQ(digest(result), expected);
    EXPECT_GE(result.metrics.number("began"), snapshots ? 32 : 15);
    std::filesystem::remove_all(directory_.path() / name_);
  }
}

TEST_F(FaultTraining, ShrinksWhenAColdResumeHasFewerRanks) {
  name_ = "smaller";
  settings_["step_ms"] = 20;
  options_.scaling.num_workers = 3;
  options_.run.time_limit = 700ms;
  const auto first = fit("");
  ASSERT_TRUE(first.preempted);
  options_.run.time_limit = 0ms;
  options_.scaling.num_workers = 2;
  const auto second = fit("");
  ASSERT_TRUE(second.ok()) << second.error->message;
  EXPECT_EQ(second.metrics.number("began"), first.metrics.number("stopped_at"));
  EXPECT_EQ(second.metrics.number("updates"), 40);
}

TEST_F(FaultTraining, LeavesNothingBehind) {
  const std::filesystem::path memory = "/dev/shm/troupe-leaves-nothing-" + std::to_string(getpid());  // its own: other tests run beside it
  std::filesystem::create_directory(memory);
  options_.run.failure.snapshot_path = memory;
  (void)fresh("rank=any step=5..30 kind=kill");
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::recursive_directory_iterator{memory}) {
    if (entry.is_regular_file()) left.push_back(entry.path());
  }
  EXPECT_THAT(left, testing::IsEmpty());
  std::filesystem::remove_all(memory);
  EXPECT_TRUE(waitpid(-1, nullptr, WNOHANG) < 0 && errno == ECHILD);
  EXPECT_FALSE(std::filesystem::exists(directory_.path() / name_ / ".staging"));
}

long resident_kb() {
  std::ifstream status{"/proc/self/status"};
  for (std::string word; status >> word;) {
    if (word == "VmRSS:") return status >> word, std::stol(word);
  }
  return 0;
}

TEST_F(FaultTraining, SoakOneFaultEveryFifteenSeconds) {
  const int seconds = std::getenv("TROUPE_SOAK_S") ? std::atoi(std::getenv("TROUPE_SOAK_S")) : 600;
  settings_["strategy"] = "zero3";
  settings_["updates"] = seconds * 10;
  settings_["checkpoint_every"] = 100;
  options_.run.failure.max_failures = -1;
  options_.run.checkpoint.num_to_keep = 2;
  options_.run.step_timeout = 3s;
  const auto expected = undisturbed();
  settings_["step_ms"] = 100;
  const auto before = resident_kb();
  const auto result = fresh("rank=any step=120..160 kind=kill|throw|segv|exit:3|abort|stop|hang|wrong-collective attempt=*; seed=7");
  EXPECT_EQ(digest(result), expected);
  std::printf("soak: %llu attempts, driver %ld kB before and %ld kB after\n", static_cast<unsigned long long>(result.history.back().attempt), before, resident_kb());
  EXPECT_GE(result.history.back().attempt, static_cast<std::uint64_t>(seconds / 30));
  EXPECT_LT(resident_kb(), before + 20'000);
}

}  // namespace

int fit_from_environment() {
  TrainerOptions options;
  options.scaling.num_workers = 2;
  options.scaling.placement = Placement::Processes;
  options.run.name = "driven";
  options.run.storage_path = std::getenv("TROUPE_TEST_STORAGE");
  options.run.failure.max_failures = 5;
  options.run.failure.snapshot_every = std::atoi(std::getenv("TROUPE_TEST_SNAPSHOTS"));
  options.run.progress = false;
  const auto settings = nlohmann::ordered_json::parse(std::getenv("TROUPE_TEST_CONFIG"));
  return TorchTrainer{*session, "train", Config(settings), options}.fit().exit_code();
}

}  // namespace troupe

// The program is its own process rank; with --fit it is a driver that can be killed.
int main(int argc, char** argv) {
  troupe::Session session{argc, argv, {{"train", troupe::train}}};
  troupe::session = &session;
  if (argc > 1 && std::string(argv[1]) == "--fit") return troupe::fit_from_environment();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

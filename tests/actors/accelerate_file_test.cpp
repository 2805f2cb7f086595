#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <troupe/accelerate_config.hpp>
#include <troupe/torch_trainer.hpp>

#include "scenario.hpp"

namespace troupe {
namespace {

TEST(TorchTrainer, RunsAsAnAccelerateFileSays) {
  const TempDir directory;
  const auto file = directory.path() / "fsdp.yaml";
  std::ofstream{file} << "distributed_type: FSDP\nnum_processes: 3\nuse_cpu: true\nfsdp_config:\n  fsdp_version: 2\n";
  const auto from_file = accelerate_options(file);
  ASSERT_EQ(from_file.config.sharding.strategy, ShardingStrategy::ShardParameters);

  TrainerOptions options;
  options.scaling = from_file.scaling;
  options.run.name = "run";
  options.run.storage_path = directory.path();
  options.run.progress = false;
  std::atomic<int> ranks{0};
  char program[] = "test";
  char* argv[] = {program, nullptr};
  const Session session{1, argv, {{"train", [&](TrainContext&, const Config&) { ++ranks; }}}};
  const auto result = TorchTrainer{session, "train", {}, options}.fit();
  EXPECT_FALSE(result.error);
  EXPECT_EQ(ranks, 3);
}

}  // namespace
}  // namespace troupe

// Shards on disk: what is left in memory, the same bits, errors; and what an open accumulation window keeps.
#include "fake_context.hpp"
#include "shard_file.hpp"
#include "shard_run.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace troupe {
namespace {

using test::OddNet;
using test::run_ranks;
using testing::HasSubstr;

constexpr std::int64_t kWidth = 64;
constexpr int kBlocks = 4;

struct Directory {
  Directory() {
    char name[] = "/tmp/troupe-shards-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

Offload to_disk(const Directory& directory) {
  return {.place = Offload::Place::Disk, .path = directory.path, .chunk_bytes = 4096, .num_buffers = 3};
}

/// A model being trained, and what its rank keeps of it.
struct Trainee {
  Trainee(TrainContext& context, ShardingOptions sharding, Precision precision = Precision::No, int accumulation = 1)
      : rank(context.world_rank()), accelerator(context, {.mixed_precision = precision, .gradient_accumulation_steps = accumulation, .sharding = std::move(sharding)}) {
    set_seed(5);
    net = OddNet{13, kWidth, kBlocks};
    std::vector<at::Tensor> trained;
    for (auto& p : net->parameters()) {
      if (p.requires_grad()) trained.push_back(p);
      num_elements += p.numel();
    }
    optimizer = std::make_unique<AdamW>(std::move(trained), AdamWOptions{.lr = 1e-2});
    accelerator.prepare(net, *optimizer);
  }
  void backward(int step) {
    set_seed(static_cast<std::uint64_t>(step * 10 + rank));
    const auto ids = at::randn({2, 5}, rank_generator()).abs().mul(3).clamp(0, 12).to(at::kLong);
    const auto scope = accelerator.autocast();
    accelerator.backward(net(ids).to(at::kFloat).square().mean());
  }
  void train(int from, int to) {
    for (int step = from; step < to; ++step) {
      backward(step);
      optimizer->step();
      optimizer->zero_grad();
    }
  }
  [[nodiscard]] std::int64_t now(MemoryCategory category) { return accelerator.memory().usage(category).now; }
  [[nodiscard]] std::int64_t peak(MemoryCategory category) { return accelerator.memory().usage(category).peak; }

  int rank;
  Accelerator accelerator;
  OddNet net{nullptr};
  std::unique_ptr<AdamW> optimizer;
  std::int64_t num_elements = 0;
};

ShardingOptions under(ShardingStrategy strategy) {
  ShardingOptions sharding;
  sharding.strategy = strategy;
  return sharding;
}

ShardingOptions zero3() { return under(ShardingStrategy::ShardParameters); }

/// Of `bytes` an element, shared by two ranks, with what padding adds.
auto is_a_half_of(std::int64_t elements, std::int64_t bytes) {
  return testing::AllOf(testing::Ge(elements * bytes / 2), testing::Le(elements * bytes / 2 + elements * bytes / 20));
}

TEST(ShardsOnDisk, LeaveNoParameterAndNoStateInMemory) {
  const Directory directory;
  run_ranks(2, [&](TrainContext& context) {
    Trainee kept{context, zero3()};
    kept.train(0, 3);
    EXPECT_THAT(kept.now(MemoryCategory::Parameters), is_a_half_of(kept.num_elements, 4));
    auto sharding = zero3();
    sharding.offload_params = sharding.offload_optimizer = to_disk(directory);
    Trainee away{context, sharding};
    away.accelerator.memory();
    away.train(0, 3);
    EXPECT_EQ(away.now(MemoryCategory::Parameters), 0);
    EXPECT_EQ(away.now(MemoryCategory::Optimizer), 0);
    // Two blocks' shards: the one that is updated and the one that is written or read meanwhile, in whole pages.
    const std::int64_t block = 2 * kWidth * kWidth + 8 * kWidth, shards = 3 * (block * 4 / 2 + 8192);
    EXPECT_LE(away.peak(MemoryCategory::Gathered), kept.peak(MemoryCategory::Gathered) + shards);
    EXPECT_LE(away.now(MemoryCategory::Gathered), shards / 3);  // what is written last
    EXPECT_TRUE(std::filesystem::is_empty(directory.path)) << "the file has no name";
  });
}

TEST(ShardsOnDisk, MastersGoWithTheStateAndLeaveWhatIsGathered) {
  const Directory directory;
  run_ranks(2, [&](TrainContext& context) {
    for (const auto strategy : {ShardingStrategy::ShardGradients, ShardingStrategy::ShardParameters}) {
      auto sharding = under(strategy);
      Trainee kept{context, sharding, Precision::BF16};
      sharding.offload_optimizer = to_disk(directory);
      Trainee away{context, sharding, Precision::BF16};
      for (auto* trainee : {&kept, &away}) trainee->train(0, 2);
      EXPECT_EQ(away.now(MemoryCategory::Optimizer), 0);
      if (strategy == ShardingStrategy::ShardParameters) {
        EXPECT_THAT(kept.now(MemoryCategory::Parameters), is_a_half_of(kept.num_elements, 4));
        EXPECT_THAT(away.now(MemoryCategory::Parameters), is_a_half_of(kept.num_elements, 2));
      } else {
        EXPECT_EQ(away.now(MemoryCategory::Parameters), kept.now(MemoryCategory::Parameters));
        EXPECT_GT(kept.now(MemoryCategory::Optimizer), kept.num_elements * 11 / 2);  // frozen and unused ones have no state
      }
    }
  });
}

TEST(ShardsOnDisk, AreSavedAndLoadedAsOthers) {
  const Directory shards, saved;
  run_ranks(2, [&](TrainContext& context) {
    auto on_disk = zero3();
    on_disk.offload_params = on_disk.offload_optimizer = to_disk(shards);
    Trainee first{context, on_disk};
    first.train(0, 3);
    first.accelerator.save_state(saved.path);
    first.train(3, 6);
    const auto expected = first.accelerator.get_state_dict(first.net);
    for (const auto& sharding : {on_disk, zero3()}) {
      Trainee second{context, sharding};
      second.accelerator.load_state(saved.path);
      second.train(3, 6);
      const auto state = second.accelerator.get_state_dict(second.net);
      for (std::size_t i = 0; i < state.size(); ++i) EXPECT_TRUE(at::equal(state[i].second, expected[i].second)) << state[i].first;
    }
  });
}

TEST(ShardsOnDisk, AnOptimizerMayOutliveItsEngine) {
  const Directory directory;
  run_ranks(1, [&](TrainContext& context) {
    auto sharding = zero3();
    sharding.offload_params = to_disk(directory);
    std::unique_ptr<AdamW> optimizer;
    {
      Trainee trainee{context, sharding};
      trainee.backward(0);
      optimizer = std::move(trainee.optimizer);
    }
    EXPECT_NO_THROW(optimizer->step());
  });
}

TEST(ShardsOnDisk, NeedAStrategyThatFreesParametersAndADirectory) {
  run_ranks(1, [](TrainContext& context) {
    const Directory directory;
    const auto refused = [&](ShardingOptions sharding) -> std::string {
      try {
        Trainee trainee{context, sharding};
      } catch (const Failure& failure) {
        return failure.what();
      }
      return "";
    };
    auto sharding = under(ShardingStrategy::ShardGradients);
    sharding.offload_params = to_disk(directory);
    EXPECT_THAT(refused(sharding), HasSubstr("offload_params to disk needs the strategy ShardParameters"));
    sharding.strategy = ShardingStrategy::ShardParameters;
    EXPECT_EQ(refused(sharding), "");
    sharding.offload_params.path = directory.path / "none";
    EXPECT_THAT(refused(sharding), testing::AllOf(HasSubstr("offload of parameters: rank 0's file in"), HasSubstr("there is no such directory")));
    sharding = under(ShardingStrategy::Replicate);
    sharding.offload_optimizer = to_disk(directory);
    EXPECT_THAT(refused(sharding), HasSubstr("need a strategy that shards"));
  });
}

TEST(ShardsOnDisk, ComeFromDeepSpeedsNvme) {
  const Directory directory;
  run_ranks(2, [&](TrainContext& context) {
    const auto json = R"({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": "auto", "train_batch_size": "auto", "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0,
      "offload_param": {"device": "nvme", "nvme_path": ")" + directory.path.string() + R"(", "buffer_size": 1024, "buffer_count": 2}}})";
    set_seed(5);
    OddNet net{13, kWidth, 1};
    std::vector<at::Tensor> trained;
    for (auto& p : net->parameters()) {
      if (p.requires_grad()) trained.push_back(p);
    }
    AdamW optimizer{trained, {}};
    Accelerator accelerator{context, {.deepspeed_plugin = DeepSpeedPlugin::from_json(json)}};
    accelerator.prepare(net, optimizer);
    accelerator.backward(net(at::randn({2, 5}).abs().to(at::kLong)).square().mean());
    optimizer.step();
    EXPECT_EQ(accelerator.memory().usage(MemoryCategory::Parameters).now, 0);
  });
}

TEST(ShardFile, MovesRegionsOfManyChunksWhateverIsUnderWay) {
  const Directory directory;
  for (const int num_buffers : {1, 2, 5}) {
    const MemoryAccount account;
    detail::ShardFile file{{.place = Offload::Place::Disk, .path = directory.path, .chunk_bytes = 4096, .num_buffers = num_buffers}, 0, account};
    const std::vector<std::int64_t> sizes{10, 4096, 50'000, 12'288, 70'001};
    std::vector<std::size_t> regions;
    for (const auto bytes : sizes) regions.push_back(file.add(bytes));
    const auto content = [](std::size_t i) { return static_cast<int>(17 + 31 * i); };
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      std::memset(file.fresh(regions[i]), content(i), static_cast<std::size_t>(sizes[i]));
      file.write_back(regions[i]);
    }
    for (const auto region : regions) file.start_read(region);  // the last one is on its way out
    for (const std::size_t i : {3, 0, 4, 1, 2}) {
      const auto* bytes = file.finish_read(regions[i]);
      EXPECT_TRUE(std::all_of(bytes, bytes + sizes[i], [&](std::byte b) { return b == static_cast<std::byte>(content(i)); })) << i << ", " << num_buffers << " buffers";
      file.let_go(regions[i]);
    }
    file.start_read(regions[2]);
    file.let_go(regions[2]);  // not wanted after all
    EXPECT_EQ(account.usage(MemoryCategory::Gathered).now, 0);
    file.start_read(regions[4]);  // ended under way
  }
}

/// What an open window keeps of its gradients: a rank's shard where the strategy shards them, all where it does not.
struct OpenWindow : testing::TestWithParam<ShardingStrategy> {};

TEST_P(OpenWindow, KeepsItsGradientsShardedWhereTheStrategyDoes) {
  run_ranks(2, [](TrainContext& context) {
    for (const bool by_scope : {false, true}) {
      Trainee trainee{context, under(GetParam()), Precision::No, by_scope ? 1 : 3};
      for (int micro = 0; micro < 2; ++micro) {
        if (by_scope) {
          const auto scope = trainee.accelerator.no_sync(trainee.net);
          trainee.backward(micro);
        } else {
          const auto window = trainee.accelerator.accumulate(trainee.net);
          trainee.backward(micro);
        }
        std::int64_t whole = 0;  // bytes
        for (const auto& p : trainee.net->parameters()) whole += p.grad().defined() ? p.grad().numel() * 4 : 0;
        const auto trained = trainee.num_elements - kBlocks * kWidth - kBlocks / 2 * 3 * kWidth;  // without frozen and unused
        if (GetParam() == ShardingStrategy::ShardOptimizer) {
          EXPECT_EQ(whole, trained * 4);
        } else {
          EXPECT_EQ(whole, 0);
          EXPECT_THAT(trainee.now(MemoryCategory::Gradients), testing::AllOf(testing::Ge(trained * 2), testing::Le(trainee.num_elements * 2 + 8192)));
          EXPECT_EQ(trainee.now(MemoryCategory::Gathered), 0);
        }
      }
    }
  });
}
INSTANTIATE_TEST_SUITE_P(Sharding, OpenWindow,
                         testing::Values(ShardingStrategy::ShardOptimizer, ShardingStrategy::ShardGradients, ShardingStrategy::ShardParameters));

}  // namespace
}  // namespace troupe

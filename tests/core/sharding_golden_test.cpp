// Which rank gets which sample, against Accelerate 1.15 and torch 2.11 (tests/golden/e_sharding).
#include <troupe/data/sampler.hpp>
#include <troupe/data/sharding.hpp>
#include <troupe/errors.hpp>

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

nlohmann::json golden(const std::string& file) {
  const char* other = std::getenv("TROUPE_GOLDEN");
  const auto path = std::filesystem::path(other ? other : TROUPE_TEST_GOLDEN) / "e_sharding" / file;
  std::ifstream in{path};
  if (!in) throw std::runtime_error("no golden file " + path.string());
  return nlohmann::json::parse(in);
}

TEST(sharding_golden, DealsBatchesAsAccelerateDoes) {
  int checked = 0;
  const auto file = golden("accelerate_sharding.json");
  for (const auto& [world, cases] : file["worlds"].items()) {
    for (const auto& expected : cases) {
      const std::size_t n = expected["n"];
      ShardingRule rule{.batch_size = expected["batch_size"], .drop_last = expected["drop_last"], .split_batches = expected["split_batches"],
                        .even_batches = expected["even_batches"], .rank = 0, .world_size = std::stoi(world)};
      const auto text = "world " + world + ", " + expected.dump().substr(0, 100);
      if (expected.contains("error")) {
        EXPECT_THROW((void)shard_batches(sequential_order(n), rule), Failure) << text;
        continue;
      }
      for (; rule.rank < rule.world_size; ++rule.rank) {
        const auto batches = shard_batches(sequential_order(n), rule);
        const auto rank = static_cast<std::size_t>(rule.rank);
        EXPECT_EQ(batches, expected["ranks"][rank].get<std::vector<Indices>>()) << text << " rank " << rank;
        EXPECT_EQ(batches.size(), expected["ranks"][rank].size());
      }
      EXPECT_EQ(rule.total_batch_size(), expected["total_batch_size"].get<std::int64_t>()) << text;
      EXPECT_EQ(remainder_at_end(n, rule), expected["remainder_at_end"].get<std::int64_t>()) << text;
      ++checked;
    }
  }
  EXPECT_GT(checked, 0);
}

TEST(sharding_golden, ShufflesAsTorchDoes) {
  const auto samplers = golden("samplers.json");
  for (const auto& expected : samplers["seedable_random_sampler"]) {
    for (std::size_t epoch = 0; epoch < expected["epochs"].size(); ++epoch) {
      EXPECT_EQ(seedable_random_order(expected["n"], expected["data_seed"], static_cast<std::int64_t>(epoch)), expected["epochs"][epoch].get<Indices>());
    }
  }
  for (const auto& expected : samplers["randperm_cpu_mt19937"]) {
    EXPECT_EQ(random_order(expected["n"], expected["seed"]), expected["first"].get<Indices>());
  }
}

TEST(sharding_golden, DealsSamplesAsDistributedSamplerDoes) {
  const auto file = golden("samplers.json");
  for (const auto& expected : file["distributed_sampler"]) {
    for (std::size_t epoch = 0; epoch < expected["epochs"].size(); ++epoch) {
      const std::size_t n = expected["n"];
      const auto order = expected["shuffle"].get<bool>() ? random_order(n, expected["seed"].get<std::uint64_t>() + epoch) : sequential_order(n);
      const auto& ranks = expected["epochs"][epoch];
      for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
        EXPECT_EQ(distributed_samples(order, static_cast<int>(rank), expected["world"], expected["drop_last"]), ranks[rank].get<Indices>())
            << expected.dump().substr(0, 120) << " epoch " << epoch << " rank " << rank;
      }
    }
  }
}

}  // namespace
}  // namespace troupe

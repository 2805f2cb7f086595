// e_sharding of tests/golden: what Accelerate 1.15 and torch 2.11 gave, index for index.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randperm.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <troupe/data/samplers.hpp>
#include <troupe/errors.hpp>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

using Json = nlohmann::json;

DataLoader loader_of(const Json& c, int rank, int world) {
  DataLoader loader{counting(c["n"]), {.batch_size = c["batch_size"], .drop_last = c["drop_last"]}};
  loader.shard(rank, world,
               {.split_batches = c["split_batches"], .even_batches = c["even_batches"]}, 0);
  return loader;
}

struct RankEpoch {
  Batches batches;
  std::vector<LoaderState> states;  // while each batch is processed
};

RankEpoch run_epoch(DataLoader& loader) {
  RankEpoch epoch;
  for (const auto& batch : loader) {
    epoch.batches.push_back(indices(batch));
    epoch.states.push_back(loader.state());
  }
  return epoch;
}

/// What gather_for_metrics makes of every step: all ranks' rows in rank order, the last step cut to
/// `remainder` rows.
Batches gathered(const std::vector<RankEpoch>& ranks) {
  Batches steps;
  for (std::size_t s = 0; s < ranks[0].batches.size(); ++s) {
    auto& rows = steps.emplace_back();
    for (const auto& rank : ranks)
      rows.insert(rows.end(), rank.batches[s].begin(), rank.batches[s].end());
    const auto& state = ranks[0].states[s];
    if (state.end_of_dataloader && state.remainder > 0)
      rows.resize(std::min(rows.size(), static_cast<std::size_t>(state.remainder)));
  }
  return steps;
}

void check_case(const Json& c, int world) {
  if (c.contains("error")) {
    EXPECT_THROW(loader_of(c, 0, world), Failure);
    return;
  }
  std::vector<RankEpoch> ranks;
  bool same_lengths = true;
  for (int rank = 0; rank < world; ++rank) {
    auto loader = loader_of(c, rank, world);
    ranks.push_back(run_epoch(loader));
    const auto& epoch = ranks.back();
    EXPECT_EQ(epoch.batches, c["ranks"][static_cast<std::size_t>(rank)].get<Batches>())
        << "rank " << rank;
    EXPECT_EQ(loader.size(), static_cast<std::int64_t>(epoch.batches.size()));
    EXPECT_EQ(loader.total_batch_size(), c["total_batch_size"].get<std::int64_t>());
    for (std::size_t s = 0; s < epoch.states.size(); ++s) {
      EXPECT_EQ(epoch.states[s].end_of_dataloader, s + 1 == epoch.states.size());
    }
    if (!epoch.states.empty()) {
      EXPECT_EQ(epoch.states.back().remainder, c["remainder_at_end"].get<std::int64_t>());
    }
    same_lengths = same_lengths && epoch.batches.size() == ranks[0].batches.size();
  }
  if (same_lengths && c["gather_for_metrics"].is_array()) {
    EXPECT_EQ(gathered(ranks), c["gather_for_metrics"].get<Batches>());
  }
}

TEST(sharding_golden, EveryRankGetsTheBatchesThatAccelerateGivesIt) {
  const auto file = golden("e_sharding/accelerate_sharding.json");
  std::size_t num_cases = 0;
  for (const auto& [world, cases] : file["worlds"].items()) {
    for (const auto& c : cases) {
      SCOPED_TRACE("world " + world + " n=" + c["n"].dump() +
                   " batch_size=" + c["batch_size"].dump() + " split=" + c["split_batches"].dump() +
                   " even=" + c["even_batches"].dump() + " drop_last=" + c["drop_last"].dump());
      check_case(c, std::stoi(world));
      ++num_cases;
    }
  }
  EXPECT_GT(num_cases, 0u);
}

TEST(sharding_golden, SeedableRandomSamplerShufflesAsAccelerateDoes) {
  const auto file = golden("e_sharding/samplers.json");
  for (const auto& c : file["seedable_random_sampler"]) {
    SeedableRandomSampler sampler{c["n"], c["data_seed"]};
    DataLoader loader{counting(c["n"]), {.batch_size = c["n"], .shuffle = true}};
    loader.shard(0, 1, {.use_seedable_sampler = true, .data_seed = c["data_seed"]}, 0);
    for (std::size_t e = 0; e < c["epochs"].size(); ++e) {
      const auto expected = c["epochs"][e].get<std::vector<std::int64_t>>();
      EXPECT_EQ(sampler.order(static_cast<std::int64_t>(e)), expected);
      EXPECT_EQ(epoch_of(loader), Batches{expected});
    }
  }
}

TEST(sharding_golden, DistributedSamplerDealsAsTorchDoes) {
  const auto file = golden("e_sharding/samplers.json");
  for (const auto& c : file["distributed_sampler"]) {
    for (std::size_t e = 0; e < c["epochs"].size(); ++e) {
      for (int rank = 0; rank < c["world"].get<int>(); ++rank) {
        DistributedSampler sampler{c["n"],
                                   {rank, c["world"], c["shuffle"], c["drop_last"], c["seed"]}};
        EXPECT_EQ(sampler.num_samples(), c["num_samples"].get<std::size_t>());
        EXPECT_EQ(sampler.order(static_cast<std::int64_t>(e)),
                  c["epochs"][e][static_cast<std::size_t>(rank)].get<std::vector<std::int64_t>>());
      }
    }
  }
}

TEST(sharding_golden, PermutationsComeFromTorchsGenerator) {
  const auto file = golden("e_sharding/samplers.json");
  for (const auto& c : file["randperm_cpu_mt19937"]) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(c["seed"].get<std::uint64_t>());
    for (const auto* which : {"first", "second"}) {
      const auto order =
          at::randperm(c["n"].get<std::int64_t>(), generator, at::TensorOptions().dtype(at::kLong));
      const auto* first = order.const_data_ptr<std::int64_t>();
      EXPECT_EQ(std::vector<std::int64_t>(first, first + order.numel()),
                c[which].get<std::vector<std::int64_t>>());
    }
    RandomSampler sampler{c["n"], c["seed"]};
    EXPECT_EQ(sampler.order(0), c["first"].get<std::vector<std::int64_t>>());
  }
}

}  // namespace
}  // namespace troupe

// e_loaders of tests/golden: streams, dispatched batches, batch samplers and samplers as Accelerate 1.15 and torch 2.11 gave them.
#include <gtest/gtest.h>

#include <algorithm>
#include <troupe/data/samplers.hpp>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

using Json = nlohmann::json;
using Order = std::vector<std::int64_t>;

/// Batches of a sampler's order, each sorted downwards.
class Downwards final : public BatchSampler {
 public:
  Downwards(std::int64_t size, std::int64_t batch_size) : size_(size), batch_size_(batch_size) {}
  [[nodiscard]] Batches batches(std::int64_t) override {
    Batches all;
    for (std::int64_t i = 0; i < size_; ++i) {
      if (i % batch_size_ == 0) all.emplace_back();
      all.back().insert(all.back().begin(), i);
    }
    return all;
  }
  [[nodiscard]] std::size_t size() const override { return static_cast<std::size_t>((size_ + batch_size_ - 1) / batch_size_); }
  [[nodiscard]] std::optional<std::int64_t> batch_size() const override { return batch_size_; }

 private:
  std::int64_t size_, batch_size_;
};

DataLoader loader_of(const Json& c) {
  const auto n = c["n"].get<std::int64_t>(), batch_size = c["batch_size"].get<std::int64_t>();
  if (c["kind"] == "batch_sampler") return {counting(n), {.batch_sampler = std::make_shared<Downwards>(n, batch_size)}};
  const DataLoaderOptions options{.batch_size = batch_size, .drop_last = c["drop_last"]};
  if (c["kind"] == "map") return {counting(n), options};
  return {std::make_shared<CountingStream>(n), options};
}

struct Got {
  Batches batches;
  std::vector<LoaderState> states;
};

std::vector<Got> run(const Json& c, int world) {
  std::vector<Got> ranks(static_cast<std::size_t>(world));
  on_ranks(world, [&](int rank, DataLoader::BroadcastBytes broadcast) {
    auto loader = loader_of(c);
    loader.shard(rank, world, {.split_batches = c["split"], .even_batches = c.value("even", true), .dispatch_batches = c["dispatch"].get<bool>()}, 0, std::move(broadcast));
    auto& got = ranks[static_cast<std::size_t>(rank)];
    for (const auto& batch : loader) {
      got.batches.push_back(indices(batch));
      EXPECT_EQ(loader.batch_indices(), got.batches.back());
      got.states.push_back(loader.state());
    }
    EXPECT_EQ(loader.size(), std::ssize(got.batches));
  });
  return ranks;
}

/// gather_for_metrics of every step.
Batches gathered(const std::vector<Got>& ranks) {
  Batches steps;
  for (std::size_t s = 0; s < ranks[0].batches.size(); ++s) {
    auto& rows = steps.emplace_back();
    for (const auto& rank : ranks) rows.insert(rows.end(), rank.batches[s].begin(), rank.batches[s].end());
    const auto& state = ranks[0].states[s];
    EXPECT_EQ(state.end_of_dataloader, s + 1 == ranks[0].batches.size());
    if (state.end_of_dataloader && state.remainder > 0) rows.resize(std::min(rows.size(), static_cast<std::size_t>(state.remainder)));
  }
  return steps;
}

void check(const Json& c, int world) {
  const auto ranks = run(c, world);
  const auto n = c["n"].get<std::int64_t>();
  for (int rank = 0; rank < world; ++rank) {
    const auto expected = c["ranks"][static_cast<std::size_t>(rank)].get<Batches>();
    // Fewer samples than ranks: Accelerate gives the last ranks empty batches; ours repeats samples until all have one.
    if (c["dispatch"].get<bool>() && n < world) {
      EXPECT_EQ(ranks[static_cast<std::size_t>(rank)].batches, (Batches{{rank % n}}));
      continue;
    }
    EXPECT_EQ(ranks[static_cast<std::size_t>(rank)].batches, expected) << "rank " << rank;
  }
  if (c["kind"] == "batch_sampler" && !c["even"].get<bool>()) return;  // ranks differ
  const auto rows = gathered(ranks);
  if (c["dispatch"].get<bool>() && n >= world) {
    EXPECT_EQ(rows, c["gathered"].get<Batches>());
  }
  if (c["kind"] == "batch_sampler") return;
  Order all, expected;  // Accelerate keeps what it added to a stream; ours drops it
  for (const auto& step : rows) all.insert(all.end(), step.begin(), step.end());
  const auto total = c["batch_size"].get<std::int64_t>() * (c["split"].get<bool>() ? 1 : world);
  for (std::int64_t i = 0; i < (c["drop_last"].get<bool>() ? n / total * total : n); ++i) expected.push_back(i);
  EXPECT_EQ(all, expected);
}

TEST(LoaderGolden, EveryRankGetsTheBatchesThatAccelerateGivesIt) {
  const auto file = golden("e_loaders/accelerate_loaders.json");
  int num_cases = 0;
  for (const auto& [world, cases] : file["worlds"].items()) {
    for (const auto& c : cases) {
      auto shown = c;
      for (const auto* key : {"ranks", "gathered"}) shown.erase(key);
      SCOPED_TRACE("world " + world + " " + shown.dump());
      check(c, std::stoi(world));
      ++num_cases;
    }
  }
  EXPECT_GT(num_cases, 500);
}

TEST(LoaderGolden, WeightedRandomSamplerDrawsAsTorchDoes) {
  for (const auto& c : golden("e_loaders/accelerate_loaders.json")["weighted_random_sampler"]) {
    WeightedRandomSampler sampler{c["weights"], c["num_samples"], c["replacement"], c["seed"]};
    for (const std::size_t e : {0u, 1u, 2u, 0u, 2u}) EXPECT_EQ(sampler.order(static_cast<std::int64_t>(e)), c["epochs"][e].get<Order>()) << c.dump();
  }
}

TEST(LoaderGolden, RandomSamplerDrawsAsTorchDoesWithOptions) {
  for (const auto& c : golden("e_loaders/accelerate_loaders.json")["random_sampler"]) {
    RandomSampler sampler{c["n"], c["seed"], {.replacement = c["replacement"], .num_samples = c["num_samples"].get<std::size_t>()}};
    for (std::size_t e = 0; e < 3; ++e) EXPECT_EQ(sampler.order(static_cast<std::int64_t>(e)), c["epochs"][e].get<Order>()) << c.dump();
  }
}

}  // namespace
}  // namespace troupe

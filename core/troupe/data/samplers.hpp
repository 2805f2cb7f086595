#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace troupe {

/// The order in which an epoch visits a data set. The same epoch asked for twice is the same order.
///
/// Threads: one caller.
class Sampler {
 public:
  virtual ~Sampler() = default;
  /// Indices of the data set, in order.
  [[nodiscard]] virtual std::vector<std::int64_t> order(std::int64_t epoch) = 0;
};

/// 0, 1, 2, …
class SequentialSampler final : public Sampler {
 public:
  explicit SequentialSampler(std::size_t size) : size_(size) {}
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) override;

 private:
  std::size_t size_;
};

/// torch.utils.data.RandomSampler with `generator = torch.Generator().manual_seed(seed)`: every
/// epoch takes two permutations from the one generator and uses the first. Going back to an earlier
/// epoch replays the generator. Throws Failure{InvalidArgument} for an empty data set, as torch
/// does.
class RandomSampler final : public Sampler {
 public:
  RandomSampler(std::size_t size, std::uint64_t seed);
  ~RandomSampler() override;
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Accelerate's SeedableRandomSampler: a permutation from a generator seeded with seed + epoch.
class SeedableRandomSampler final : public Sampler {
 public:
  SeedableRandomSampler(std::size_t size, std::uint64_t seed);
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) override;

 private:
  std::size_t size_;
  std::uint64_t seed_;
};

/// torch.utils.data.DistributedSampler, which Ray Train's prepare_data_loader uses: every rank
/// takes each world_size-th index of the (shuffled) order, whose end is filled up from its
/// beginning or dropped.
class DistributedSampler final : public Sampler {
 public:
  struct Options {
    int rank = 0;
    int world_size = 1;
    bool shuffle = true;
    bool drop_last = false;
    std::uint64_t seed = 0;
  };
  DistributedSampler(std::size_t size, Options options);
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) override;
  /// Samples of one epoch on each rank.
  [[nodiscard]] std::size_t num_samples() const noexcept { return num_samples_; }

 private:
  std::size_t size_;
  Options options_;
  std::size_t num_samples_;
};

}  // namespace troupe

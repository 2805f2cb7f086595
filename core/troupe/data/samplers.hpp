#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace troupe {

/// The order in which an epoch visits a data set. The same epoch asked for twice is the same order, on every rank: that is
/// how ranks share it, and how a resumed loop goes on in it. Derive from it for an order of your own.
///
/// Threads: one caller.
class Sampler {
 public:
  virtual ~Sampler() = default;
  /// Indices of the data set, in order; `size()` of them.
  [[nodiscard]] virtual std::vector<std::int64_t> order(std::int64_t epoch) = 0;
  [[nodiscard]] virtual std::size_t size() const = 0;
};

/// The batches of an epoch, where they are more than runs of equal length of an order. As for Sampler.
class BatchSampler {
 public:
  virtual ~BatchSampler() = default;
  [[nodiscard]] virtual std::vector<std::vector<std::int64_t>> batches(std::int64_t epoch) = 0;
  /// Number of batches.
  [[nodiscard]] virtual std::size_t size() const = 0;
  /// Length of every batch but the last, which may be shorter. Nothing: each has a length of its own; such batches are dealt
  /// to several ranks as they are, and only without even_batches, as in Accelerate.
  [[nodiscard]] virtual std::optional<std::int64_t> batch_size() const { return std::nullopt; }
  /// Whether a last round that is not full is dropped when batches are dealt to ranks.
  [[nodiscard]] virtual bool drop_last() const { return false; }
};

/// 0, 1, 2, …
class SequentialSampler final : public Sampler {
 public:
  explicit SequentialSampler(std::size_t size) : size_(size) {}
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) override;
  [[nodiscard]] std::size_t size() const override { return size_; }

 private:
  std::size_t size_;
};

/// torch.utils.data.RandomSampler with `generator = torch.Generator().manual_seed(seed)`: epochs take their numbers from the
/// one generator, one after another. Going back to an earlier epoch replays the generator. Throws
/// Failure{InvalidArgument} for an empty data set, as torch does.
class RandomSampler final : public Sampler {
 public:
  struct Options {
    bool replacement = false;
    std::optional<std::size_t> num_samples = {};  ///< of an epoch; nothing: the data set's size
  };
  RandomSampler(std::size_t size, std::uint64_t seed);
  RandomSampler(std::size_t size, std::uint64_t seed, Options options);
  ~RandomSampler() override;
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) override;
  [[nodiscard]] std::size_t size() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// torch.utils.data.WeightedRandomSampler with such a generator: `num_samples` indices below weights.size(), drawn by weight.
/// Throws Failure{InvalidArgument} on a weight that is negative or not finite, or when there are too few above 0 to draw from.
class WeightedRandomSampler final : public Sampler {
 public:
  WeightedRandomSampler(std::vector<double> weights, std::size_t num_samples, bool replacement, std::uint64_t seed);
  ~WeightedRandomSampler() override;
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) override;
  [[nodiscard]] std::size_t size() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Accelerate's SeedableRandomSampler: a permutation from a generator seeded with seed + epoch.
class SeedableRandomSampler final : public Sampler {
 public:
  SeedableRandomSampler(std::size_t size, std::uint64_t seed);
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) override;
  [[nodiscard]] std::size_t size() const override { return size_; }

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
  [[nodiscard]] std::size_t size() const override { return num_samples_; }

 private:
  std::size_t size_;
  Options options_;
  std::size_t num_samples_;
};

}  // namespace troupe

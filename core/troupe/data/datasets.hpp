#pragma once

#include <troupe/data/tensor_dict.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// A data set of known size that any thread may read by index.
class MapDataset {
 public:
  virtual ~MapDataset() = default;
  [[nodiscard]] virtual std::size_t size() const = 0;
  /// One sample, tensors without a batch dimension. Called from several threads at once.
  [[nodiscard]] virtual TensorDict get(std::size_t index) const = 0;
  /// The samples at `indices`, in that order, as torch's __getitems__. Override it where reading many at once is cheaper
  /// than one `get` each.
  [[nodiscard]] virtual std::vector<TensorDict> get_items(std::span<const std::int64_t> indices) const;
};

/// A data set that is read from its beginning to its end, of a length that need not be known. Any number of passes at once.
class IterableDataset {
 public:
  virtual ~IterableDataset() = default;

  /// One reader on its way through an epoch. Used by one thread at a time.
  class Pass {
   public:
    virtual ~Pass() = default;
    /// The next sample, tensors without a batch dimension (a whole batch, where the loader's batch_size is nothing); nothing at the end.
    [[nodiscard]] virtual std::optional<TensorDict> next() = 0;
    /// Passes over up to `count` samples and returns over how many: fewer at the end. Override it where that is cheaper than
    /// reading them: ranks and worker processes pass over each other's samples.
    virtual std::int64_t skip(std::int64_t count);
    /// Where `next` goes on, for `begin`. Empty: the data set cannot say, and a resumed loader skips from the beginning.
    [[nodiscard]] virtual std::string position() const { return {}; }
  };
  /// @param epoch    the loader's: part of the seed of what is shuffled.
  /// @param position what a pass of the same epoch said; empty: the beginning.
  [[nodiscard]] virtual std::unique_ptr<Pass> begin(std::int64_t epoch, const std::string& position) const = 0;
  /// Samples of an epoch, where that is known.
  [[nodiscard]] virtual std::optional<std::int64_t> size() const { return std::nullopt; }
  /// One rank's part, where the data set can divide itself (by files, by row groups): the loader then deals out nothing and
  /// evens out nothing. Null: it cannot, every rank reads everything and keeps its share.
  [[nodiscard]] virtual std::shared_ptr<const IterableDataset> shard(int /*rank*/, int /*world_size*/) const { return nullptr; }
};

/// Makes a batch of samples. The default stacks tensors of equal shape along a new dim 0. Called from several threads at
/// once when the loader has workers.
using Collate = std::function<Batch(std::vector<TensorDict>)>;
[[nodiscard]] Batch default_collate(std::vector<TensorDict> samples);

}  // namespace troupe

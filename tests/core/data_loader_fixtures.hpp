#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/scalar_tensor.h>

#include <barrier>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <troupe/data/data_loader.hpp>
#include <vector>

namespace troupe {

using Batches = std::vector<std::vector<std::int64_t>>;

/// Sample i is {"index": i}.
class Counting : public MapDataset {
 public:
  explicit Counting(std::size_t size) : size_(size) {}
  [[nodiscard]] std::size_t size() const override { return size_; }
  [[nodiscard]] TensorDict get(std::size_t index) const override {
    return {{"index", at::scalar_tensor(static_cast<std::int64_t>(index), at::kLong)}};
  }

 private:
  std::size_t size_;
};

inline std::shared_ptr<const MapDataset> counting(std::int64_t size) {
  return std::make_shared<Counting>(static_cast<std::size_t>(size));
}

/// Samples {"index": 0}, {"index": 1}, …, in order.
class CountingStream : public IterableDataset {
 public:
  explicit CountingStream(std::int64_t size, bool has_position = true, bool has_size = true) : size_(size), has_position_(has_position), has_size_(has_size) {}
  [[nodiscard]] std::unique_ptr<Pass> begin(std::int64_t, const std::string& position) const override {
    return std::make_unique<Reader>(*this, position.empty() ? 0 : std::stoll(position));
  }
  [[nodiscard]] std::optional<std::int64_t> size() const override { return has_size_ ? std::optional{size_} : std::nullopt; }

 protected:
  /// What `next` gives; may throw.
  [[nodiscard]] virtual TensorDict sample(std::int64_t index) const { return {{"index", at::scalar_tensor(index, at::kLong)}}; }

 private:
  class Reader final : public Pass {
   public:
    Reader(const CountingStream& stream, std::int64_t at) : stream_(stream), at_(at) {}
    [[nodiscard]] std::optional<TensorDict> next() override {
      if (at_ >= stream_.size_) return std::nullopt;
      return stream_.sample(at_++);
    }
    [[nodiscard]] std::string position() const override { return stream_.has_position_ ? std::to_string(at_) : std::string{}; }

   private:
    const CountingStream& stream_;
    std::int64_t at_;
  };
  std::int64_t size_;
  bool has_position_, has_size_;
};

/// Runs `rank` on a thread for each of `world` ranks, with a broadcast among them; what one throws ends the test program's rank only
/// when all others get to know of it, as with dispatched batches.
inline void on_ranks(int world, const std::function<void(int, DataLoader::BroadcastBytes)>& rank) {
  std::barrier barrier{world};
  const std::string* shared = nullptr;
  std::vector<std::jthread> threads;
  for (int r = 0; r < world; ++r) {
    threads.emplace_back([&, r] {
      rank(r, [&, r](std::string& bytes) {
        if (r == 0) shared = &bytes;
        barrier.arrive_and_wait();
        if (r != 0) bytes = *shared;
        barrier.arrive_and_wait();
      });
      barrier.arrive_and_drop();
    });
  }
}

inline std::vector<std::int64_t> indices(const Batch& batch) {
  const auto& tensor = batch["index"];
  const auto* first = tensor.const_data_ptr<std::int64_t>();
  return {first, first + tensor.numel()};
}

/// The indices of one epoch's batches.
inline Batches epoch_of(DataLoader& loader) {
  Batches batches;
  for (const auto& batch : loader) batches.push_back(indices(batch));
  return batches;
}

/// tests/golden/<name>, or the same below TROUPE_GOLDEN.
inline nlohmann::json golden(const std::string& name) {
  const char* other = std::getenv("TROUPE_GOLDEN");
  const auto path = std::string(other ? other : TROUPE_TEST_GOLDEN) + "/" + name;
  std::ifstream file{path};
  if (!file) throw std::runtime_error("golden file " + path + " cannot be read");
  return nlohmann::json::parse(file);
}

}  // namespace troupe

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/scalar_tensor.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
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

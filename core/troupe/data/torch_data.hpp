#pragma once

#include <troupe/data/data_loader.hpp>
#include <troupe/errors.hpp>

#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

// Between the loader and LibTorch's own C++ data API. Templates over LibTorch's headers: include it where it is needed only.

namespace troupe {

/// Example<> as a sample: {"data", "target"}, and {"data"} without a target.
[[nodiscard]] inline TensorDict to_sample(torch::data::Example<> example) {
  return {{"data", std::move(example.data)}, {"target", std::move(example.target)}};
}
[[nodiscard]] inline TensorDict to_sample(torch::data::TensorExample example) { return {{"data", std::move(example.data)}}; }

/// A torch::data map data set (with `get` and `size`), also one with `.map(transform)`, as ours. Its get_batch must be safe to call from
/// several threads when the loader has workers, as torch asks, too.
/// @param convert makes a TensorDict of what the data set gives; not needed for Example<>.
template <class Dataset, class Convert>
[[nodiscard]] std::shared_ptr<const MapDataset> from_torch(Dataset dataset, Convert convert) {
  class Adapter final : public MapDataset {
   public:
    Adapter(Dataset d, Convert c) : size_(d.size().value()), dataset_(std::move(d)), convert_(std::move(c)) {}
    std::size_t size() const override { return size_; }
    TensorDict get(std::size_t index) const override {
      const auto number = static_cast<std::int64_t>(index);
      return std::move(get_items({&number, 1}).front());
    }
    std::vector<TensorDict> get_items(std::span<const std::int64_t> indices) const override {
      std::vector<TensorDict> samples;
      auto batch = dataset_.get_batch(std::vector<std::size_t>(indices.begin(), indices.end()));
      static_assert(requires { batch.begin(); }, "from_torch takes data sets of samples; leave out .map(Stack<>()), which the loader's collate does");
      samples.reserve(batch.size());
      for (auto& sample : batch) samples.push_back(convert_(std::move(sample)));
      return samples;
    }

   private:
    std::size_t size_;
    mutable Dataset dataset_;  // torch's get_batch is not const
    Convert convert_;
  };
  if (!dataset.size()) throw Failure{Errc::InvalidArgument, "from_torch: the data set does not say its size"};
  return std::make_shared<Adapter>(std::move(dataset), std::move(convert));
}
template <class Dataset>
[[nodiscard]] std::shared_ptr<const MapDataset> from_torch(Dataset dataset) {
  return from_torch(std::move(dataset), [](auto example) { return to_sample(std::move(example)); });
}

/// Ours as a torch::data data set, for `torch::data::make_data_loader`: its batches are vectors of TensorDict.
class TorchDataset final : public torch::data::datasets::Dataset<TorchDataset, TensorDict> {
 public:
  explicit TorchDataset(std::shared_ptr<const MapDataset> dataset) : dataset_(std::move(dataset)) {}
  TensorDict get(std::size_t index) override { return dataset_->get(index); }
  std::vector<TensorDict> get_batch(c10::ArrayRef<std::size_t> indices) override {
    return dataset_->get_items(std::vector<std::int64_t>(indices.begin(), indices.end()));
  }
  std::optional<std::size_t> size() const override { return dataset_->size(); }

 private:
  std::shared_ptr<const MapDataset> dataset_;
};

/// The loader's batches as Example<>, for loops written for torch: `for (auto& example : examples(loader)) model(example.data)`.
[[nodiscard]] inline auto examples(DataLoader& loader, std::string data = "data", std::string target = "target") {
  struct Range {
    struct Iterator {
      DataLoader::Iterator at;
      const Range* range;
      torch::data::Example<> operator*() const { return {(*at)[range->data], (*at)[range->target]}; }
      Iterator& operator++() {
        ++at;
        return *this;
      }
      bool operator!=(const Iterator& other) const { return !(at == other.at); }
    };
    DataLoader& loader;
    std::string data, target;
    Iterator begin() const { return {loader.begin(), this}; }
    Iterator end() const { return {loader.end(), this}; }
  };
  return Range{loader, std::move(data), std::move(target)};
}

}  // namespace troupe

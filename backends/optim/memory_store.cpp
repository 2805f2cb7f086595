#include "state_store.hpp"

#include <ATen/ops/full.h>

#include <cstddef>

namespace troupe::detail {

namespace {

class MemoryStore final : public StateStore {
 public:
  explicit MemoryStore(std::vector<double> initial) : initial_(std::move(initial)) {}

  void reserve(const std::vector<BlockSize>&) override {}

  std::size_t add(BlockSize size) override {
    auto& block = blocks_.emplace_back();
    for (const double value : initial_) block.push_back(at::full({size.count}, value, at::TensorOptions().dtype(size.dtype).device(size.device)));
    return blocks_.size() - 1;
  }

  void update(const std::vector<Segment>& segments, const Apply& apply) override {
    for (const auto& segment : segments) {
      auto elements = segment.elements;
      const auto bytes = segment.first * static_cast<std::int64_t>(c10::elementSize(elements.dtype));
      for (std::size_t s = 0; s < initial_.size(); ++s) {
        elements.state[s] = static_cast<std::byte*>(blocks_[segment.block][s].data_ptr()) + bytes;
      }
      apply(elements, segment);
    }
  }

  at::Tensor read(std::size_t slot, std::size_t block, std::int64_t first, std::int64_t count) override {
    return blocks_[block][slot].narrow(0, first, count);
  }
  void write(std::size_t slot, std::size_t block, std::int64_t first, const at::Tensor& values) override {
    blocks_[block][slot].narrow(0, first, values.numel()).copy_(values);
  }
  void clear() override { blocks_.clear(); }

 private:
  std::vector<double> initial_;
  std::vector<std::vector<at::Tensor>> blocks_;  // by slot
};

}  // namespace

std::unique_ptr<StateStore> make_memory_store(std::vector<double> initial) { return std::make_unique<MemoryStore>(std::move(initial)); }

}  // namespace troupe::detail

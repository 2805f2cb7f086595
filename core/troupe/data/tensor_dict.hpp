#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace troupe {

/// Named tensors in a fixed order: one sample, or one batch of them.
class TensorDict {
 public:
  using Entry = std::pair<std::string, at::Tensor>;

  TensorDict() = default;
  TensorDict(std::initializer_list<Entry> entries) : entries_(entries) {}

  void set(std::string name, at::Tensor tensor);
  /// Throws Failure{NotFound} that lists the names there are.
  [[nodiscard]] const at::Tensor& operator[](std::string_view name) const;
  [[nodiscard]] const at::Tensor* find(std::string_view name) const noexcept;
  /// Size of dim 0 of the first tensor; 0 when empty.
  [[nodiscard]] std::int64_t batch_size() const;
  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] auto begin() const noexcept { return entries_.begin(); }
  [[nodiscard]] auto end() const noexcept { return entries_.end(); }
  [[nodiscard]] auto begin() noexcept { return entries_.begin(); }
  [[nodiscard]] auto end() noexcept { return entries_.end(); }

 private:
  std::vector<Entry> entries_;
};

using Batch = TensorDict;

}  // namespace troupe

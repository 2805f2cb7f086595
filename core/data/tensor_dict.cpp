#include <troupe/data/tensor_dict.hpp>
#include <troupe/errors.hpp>

namespace troupe {

void TensorDict::set(std::string name, at::Tensor tensor) {
  for (auto& [existing, value] : entries_) {
    if (existing == name) {
      value = std::move(tensor);
      return;
    }
  }
  entries_.emplace_back(std::move(name), std::move(tensor));
}

const at::Tensor* TensorDict::find(std::string_view name) const noexcept {
  for (const auto& [existing, value] : entries_) {
    if (existing == name) return &value;
  }
  return nullptr;
}

const at::Tensor& TensorDict::operator[](std::string_view name) const {
  if (const auto* tensor = find(name)) return *tensor;
  std::string names;
  for (const auto& [existing, value] : entries_) names += (names.empty() ? "" : ", ") + existing;
  throw Failure{Errc::NotFound, "the batch has no tensor '" + std::string(name) + "'; it has: " + names};
}

std::int64_t TensorDict::batch_size() const {
  return entries_.empty() || entries_.front().second.dim() == 0 ? 0 : entries_.front().second.size(0);
}

}  // namespace troupe

#include "accelerator_impl.hpp"

#include <map>

namespace troupe {

std::vector<std::pair<std::string, at::Tensor>> Accelerator::get_state_dict(const torch::nn::Module& module, bool trained_only) {
  detail::NamedTensors tensors;
  std::map<std::string, at::Tensor> whole;
  auto* shards = impl_->shards_of(module);
  if (shards) {
    shards->for_each_parameter([&](const std::string& name, const at::Tensor& tensor) {
      if (is_main_process()) whole.emplace(name, tensor);
    }, trained_only);
    if (!is_main_process()) return tensors;
  }
  for (const auto& item : module.named_parameters()) {
    if (trained_only && !item.value().requires_grad()) continue;
    const auto name = shards ? shards->first_name_of(item.value()) : std::string{};
    tensors.emplace_back(item.key(), name.empty() ? item.value().detach() : whole.at(name));
  }
  if (trained_only) return tensors;
  for (const auto& item : module.named_buffers()) tensors.emplace_back(item.key(), item.value().detach());
  return tensors;
}

}  // namespace troupe

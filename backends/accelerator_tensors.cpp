#include "accelerator_impl.hpp"

#include <troupe/errors.hpp>
#include <troupe/tensor_files.hpp>

#include <ATen/core/grad_mode.h>

#include <map>
#include <set>
#include <sstream>

namespace troupe {

namespace {

using detail::NamedTensors;

/// Takes the tensors of `file` one by one, checked against what is expected.
class Saved {
 public:
  explicit Saved(std::filesystem::path file) : file_(std::move(file)), tensors_(read_safetensors(file_)) {}
  at::Tensor take(const std::string& name, at::IntArrayRef sizes) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Failure{Errc::InvalidArgument, file_.string() + ": has no tensor " + name + ", which the model has"};
    if (found->second.sizes() != sizes) {
      std::ostringstream text;
      text << file_.string() << ": tensor " << name << " is " << found->second.sizes() << ", in the model " << sizes;
      throw Failure{Errc::InvalidArgument, text.str()};
    }
    auto tensor = found->second;
    tensors_.erase(found);
    return tensor;
  }
  void finish() const {
    if (!tensors_.empty()) throw Failure{Errc::InvalidArgument, file_.string() + ": the model has no tensor " + tensors_.begin()->first};
  }

 private:
  std::filesystem::path file_;
  TensorMap tensors_;
};

/// "exp_avg.12" is {"exp_avg", 12}.
std::pair<std::string, std::size_t> kind_and_index(const std::string& name) {
  const auto dot = name.rfind('.');
  return {name.substr(0, dot), static_cast<std::size_t>(std::stoul(name.substr(dot + 1)))};
}

}  // namespace

std::vector<std::pair<std::string, at::Tensor>> Accelerator::get_state_dict(const torch::nn::Module& module) {
  NamedTensors tensors;
  std::map<std::string, at::Tensor> whole;
  auto* shards = impl_->shards_of(module);
  if (shards) {
    shards->for_each_parameter([&](const std::string& name, const at::Tensor& tensor) {
      if (is_main_process()) whole.emplace(name, tensor);
    });
    if (!is_main_process()) return tensors;
  }
  for (const auto& item : module.named_parameters()) {
    const auto name = shards ? shards->first_name_of(item.value()) : std::string{};
    tensors.emplace_back(item.key(), name.empty() ? item.value().detach() : whole.at(name));
  }
  for (const auto& item : module.named_buffers()) tensors.emplace_back(item.key(), item.value().detach());
  return tensors;
}

void Accelerator::Impl::load_model(const std::filesystem::path& file, const Model& model) {
  const at::NoGradGuard no_grad;
  Saved saved{file};
  for (const auto& item : model.module->named_parameters()) {
    auto tensor = item.value();
    const auto name = model.shards ? model.shards->first_name_of(tensor) : std::string{};
    if (name.empty()) {
      tensor.copy_(saved.take(item.key(), tensor.sizes()));
    } else {
      model.shards->load(name, saved.take(item.key(), model.shards->sizes_of(name)));
    }
  }
  for (const auto& item : model.module->named_buffers()) at::Tensor{item.value()}.copy_(saved.take(item.key(), item.value().sizes()));
  saved.finish();
  if (model.shards) {
    model.shards->after_step();
    model.shards->settle();
  }
}

NamedTensors Accelerator::Impl::whole_state(const Optimizer& optimizer) {
  auto state = optimizer.state();
  const auto& handles = optimizer.handles();
  std::map<std::string, std::map<const void*, at::Tensor>> by_kind;  // and TensorImpl of the handle
  std::map<std::string, std::size_t> index_of;                       // of a handle, by its parameter's name
  std::set<detail::ShardEngine*> engines;
  for (std::size_t i = 0; i < handles.size(); ++i) {
    if (auto* shards = shards_of(handles[i])) {
      engines.insert(shards);
      index_of[shards->first_name_of(handles[i])] = i;
    }
  }
  if (engines.empty()) return state;
  NamedTensors whole;
  for (const auto& [name, tensor] : state) {
    const auto [kind, index] = kind_and_index(name);
    if (!shards_of(handles.at(index)) || tensor.dim() == 0) {
      whole.emplace_back(name, tensor);
    } else {
      by_kind[kind][handles[index].unsafeGetTensorImpl()] = tensor;
    }
  }
  for (const auto& [kind, tensors] : by_kind) {
    for (auto& model : models) {
      if (!model.shards || !engines.contains(model.shards.get())) continue;
      const auto piece_of = [&](std::size_t parameter, const at::Tensor&) {
        const auto found = tensors.find(model.shards->plan().params[parameter].second.unsafeGetTensorImpl());
        return found == tensors.end() ? at::Tensor{} : found->second;
      };
      model.shards->for_each_whole(piece_of, [&](const std::string& name, const at::Tensor& tensor) {
        const auto index = index_of.find(name);
        if (communicator.rank() != 0 || index == index_of.end() || !tensors.contains(handles[index->second].unsafeGetTensorImpl())) return;
        whole.emplace_back(kind + "." + std::to_string(index->second), tensor);
      });
    }
  }
  return whole;
}

NamedTensors Accelerator::Impl::local_state(const Optimizer& optimizer, NamedTensors state) const {
  const auto& handles = optimizer.handles();
  for (auto& [name, tensor] : state) {
    const auto [kind, index] = kind_and_index(name);
    if (index >= handles.size() || tensor.dim() == 0) continue;
    const auto* shards = shards_of(handles[index]);
    if (!shards) continue;
    const auto parameter = shards->first_name_of(handles[index]);
    if (tensor.sizes() != at::IntArrayRef{shards->sizes_of(parameter)}) {
      std::ostringstream text;
      text << "load_state: optimizer state " << name << " is " << tensor.sizes() << ", but its parameter " << parameter << " is "
           << at::IntArrayRef{shards->sizes_of(parameter)};
      throw Failure{Errc::InvalidArgument, text.str()};
    }
    tensor = shards->part_of(parameter, tensor);
  }
  return state;
}

}  // namespace troupe

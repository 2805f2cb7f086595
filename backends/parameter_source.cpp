#include "deferred_values.hpp"

#include <troupe/errors.hpp>
#include <troupe/fingerprint.hpp>
#include <troupe/foreign.hpp>
#include <troupe/foreign_tensors.hpp>
#include <troupe/unit.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <span>
#include <string_view>

namespace troupe {

namespace {

/// What is read at once, so that pages of the file that are done with leave memory.
constexpr std::int64_t window_bytes = std::int64_t{4} << 20;
constexpr std::int64_t sampled = 256;  // bytes at each of three places of a tensor
constexpr std::uintptr_t page = 4096;
constexpr std::uintptr_t fault_around = 64 << 10;  // what the kernel maps about a page that is read

/// Tells one set of weights from another: no guard against those who want two that look the same.
class Fnv {
 public:
  void add(std::string_view bytes) {
    for (const unsigned char byte : bytes) hash_ = (hash_ ^ byte) * 1099511628211ULL;
    hash_ = (hash_ ^ 0xFF) * 1099511628211ULL;
  }
  [[nodiscard]] std::string hex() const {
    std::array<char, 17> text{};
    std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(hash_));
    return text.data();
  }

 private:
  std::uint64_t hash_ = 14695981039346656037ULL;
};

/// The mapping is private to `whole`'s file and nobody writes to it: its pages can be read again. Within `whole`, but for the ends' pages.
void forget_pages(std::span<const std::byte> whole, const std::byte* begin, std::size_t bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(whole.data()), from = reinterpret_cast<std::uintptr_t>(begin);
  const auto least = first / page * page, most = (first + whole.size() + page - 1) / page * page;
  const auto low = std::max(least, from / fault_around * fault_around);
  const auto high = std::min(most, (from + bytes + fault_around - 1) / fault_around * fault_around);
  if (low < high) ::madvise(reinterpret_cast<void*>(low), high - low, MADV_DONTNEED);
}

class DirectorySource final : public ParameterSource {
 public:
  explicit DirectorySource(std::filesystem::path directory)
      : directory_(std::move(directory)),
        mapped_(std::filesystem::exists(directory_ / "model.safetensors") || std::filesystem::exists(directory_ / "model.safetensors.index.json")),
        tensors_(read_model_weights(directory_)) {}

  void read(const std::string& name, std::int64_t first, const at::Tensor& values) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Failure{Errc::NotFound, directory_.string() + ": lacks the tensor '" + name + "'"};
    const auto& tensor = found->second;
    const auto count = values.numel();
    if (first < 0 || first + count > static_cast<std::int64_t>(tensor.elements())) {
      throw Failure{Errc::FileCorrupt, directory_.string() + ": tensor '" + name + "' has " + std::to_string(tensor.elements()) + " elements; " +
                                           std::to_string(first) + " to " + std::to_string(first + count) + " are wanted"};
    }
    const at::NoGradGuard no_grad;
    const auto whole = to_tensor(tensor);
    if (!whole.is_contiguous()) {
      values.copy_(whole.reshape({-1}).narrow(0, first, count));
      return;
    }
    const auto flat = whole.view({-1});
    const auto size = static_cast<std::int64_t>(flat.element_size());
    const auto window = window_bytes / size;
    for (std::int64_t at = 0; at < count; at += window) {
      const auto part = flat.narrow(0, first + at, std::min(window, count - at));
      values.narrow(0, at, part.numel()).copy_(part);
      if (mapped_ && flat.const_data_ptr() == tensor.storage.data() + tensor.offset) {
        forget_pages(tensor.storage, static_cast<const std::byte*>(part.const_data_ptr()), part.nbytes());
      }
    }
  }

  std::string fingerprint() const override {
    Fnv hash;
    for (const auto& [name, tensor] : tensors_) {
      hash.add(name);
      hash.add(c10::str(tensor.shape, static_cast<int>(tensor.dtype)));
      const auto all = tensor.storage;
      const auto size = static_cast<std::int64_t>(all.size());
      for (const auto begin : {std::int64_t{0}, size / 2, size - sampled}) {
        const auto from = std::clamp<std::int64_t>(begin, 0, size);
        const auto count = static_cast<std::size_t>(std::min(sampled, size - from));
        hash.add({reinterpret_cast<const char*>(all.data()) + from, count});
        if (count > 0 && mapped_) forget_pages(all, all.data() + from, count);
      }
    }
    return hash.hex();
  }

 private:
  std::filesystem::path directory_;
  bool mapped_;  // all of it; of pickles some may be memory of our own, which cannot be read again
  ForeignTensors tensors_;
};

void check_complete(const torch::nn::Module& model, const std::map<std::string, at::Tensor>& unread) {
  if (unread.empty()) return;
  throw Failure{Errc::InvalidArgument, "parameter " + unread.begin()->first + " of " + model.name() +
                                           " has no memory, and no unit of the model has a source for it (Unit::set_parameter_source)"};
}

}  // namespace

at::Tensor deferred_parameter(c10::IntArrayRef sizes, c10::ScalarType type) {
  auto tensor = at::empty({0}, at::TensorOptions().dtype(type));
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(sizes);
  tensor.storage().unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_(
      "this parameter has no memory yet: its model was made deferred; prepare it with an Accelerator, or materialize() it");
  return tensor;
}

bool is_deferred(const at::Tensor& tensor) { return tensor.defined() && tensor.numel() > 0 && tensor.has_storage() && tensor.storage().nbytes() == 0; }

bool is_deferred(const torch::nn::Module& model) {
  const auto parameters = model.parameters();
  return std::any_of(parameters.begin(), parameters.end(), [](const at::Tensor& p) { return is_deferred(p); });
}

std::shared_ptr<const ParameterSource> directory_source(const std::filesystem::path& directory) { return std::make_shared<DirectorySource>(directory); }

std::string fingerprint(const torch::nn::Module& model) {
  const at::NoGradGuard no_grad;
  const detail::DeferredValues values{model};
  Fnv hash;
  for (const auto& item : model.named_parameters()) {
    const auto& parameter = item.value();
    hash.add(item.key());
    hash.add(c10::str(parameter.sizes()));
    const auto count = std::min(parameter.numel(), sampled / 4);
    auto sample = at::empty({count}, at::TensorOptions().dtype(parameter.scalar_type()));
    for (const auto first : {std::int64_t{0}, (parameter.numel() - count) / 2, parameter.numel() - count}) {
      if (is_deferred(parameter)) values.read(item.key(), first, sample);
      else sample.copy_(parameter.detach().reshape({-1}).narrow(0, first, count));
      const auto wide = sample.to(at::kFloat);
      hash.add({static_cast<const char*>(wide.const_data_ptr()), wide.nbytes()});
    }
  }
  return hash.hex();
}

void materialize(torch::nn::Module& model) {
  const detail::DeferredValues values{model};
  for (auto& item : model.named_parameters()) {
    if (is_deferred(item.value())) detail::materialize(item.value(), item.key(), values);
  }
}

namespace detail {

DeferredValues::DeferredValues(const torch::nn::Module& model) {
  std::map<std::string, at::Tensor> unread;
  for (const auto& item : model.named_parameters()) {
    if (is_deferred(item.value())) unread.emplace(item.key(), item.value());
  }
  if (unread.empty()) return;
  const auto take = [&](const std::string& prefix, const torch::nn::Module& module) {
    const auto* unit = dynamic_cast<const Unit*>(&module);
    if (!unit || !unit->parameter_source()) return;
    for (const auto& item : module.named_parameters()) {
      const auto name = prefix.empty() ? item.key() : prefix + "." + item.key();
      if (unread.erase(name)) places_.emplace(name, Place{unit->parameter_source(), item.key()});
    }
  };
  take("", model);
  for (const auto& item : model.named_modules("", /*include_self=*/false)) take(item.key(), *item.value());
  check_complete(model, unread);
}

void DeferredValues::read(const std::string& name, std::int64_t first, const at::Tensor& values) const {
  const auto& place = places_.at(name);
  place.source->read(place.name, first, values);
}

std::string DeferredValues::fingerprint() const {
  std::set<const ParameterSource*> seen;
  std::string text;
  for (const auto& [name, place] : places_) {
    if (seen.insert(place.source.get()).second) text += (text.empty() ? "" : " ") + place.source->fingerprint();
  }
  return text;
}

void materialize(at::Tensor parameter, const std::string& name, const DeferredValues& values, at::Device device) {
  const at::NoGradGuard no_grad;
  const auto whole = at::empty(parameter.sizes(), parameter.options().device(device));
  values.read(name, 0, whole.view({-1}));
  parameter.set_data(whole);
}

}  // namespace detail

}  // namespace troupe

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <troupe/errors.hpp>
#include <troupe/generate.hpp>

#include "llama_types.hpp"

namespace troupe {

KvCache::KvCache(const LlamaConfig& config, std::int64_t batch, std::int64_t capacity, DType dtype) : batch_(batch), capacity_(capacity) {
  if (batch < 1 || capacity < 1) {
    throw Failure{Errc::InvalidArgument, "KvCache: " + std::to_string(batch) + " rows of " + std::to_string(capacity) + " tokens; both must be 1 or more"};
  }
  const auto options = at::TensorOptions().dtype(detail::scalar_type(dtype));
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    keys_.push_back(at::empty({batch, config.kv_heads(), capacity, config.head_size()}, options));
    values_.push_back(at::empty_like(keys_.back()));
  }
}

void KvCache::reserve(std::int64_t capacity) {
  if (capacity <= capacity_) return;
  for (auto* list : {&keys_, &values_}) {
    for (auto& tensor : *list) {
      auto sizes = tensor.sizes().vec();
      sizes[2] = capacity;
      auto larger = at::empty(sizes, tensor.options());
      larger.narrow(2, 0, length_).copy_(tensor.narrow(2, 0, length_));
      tensor = std::move(larger);
    }
  }
  capacity_ = capacity;
}

std::pair<at::Tensor, at::Tensor> KvCache::append(std::int64_t layer, const at::Tensor& k_BHtK, const at::Tensor& v_BHtK) {
  const auto tokens = k_BHtK.size(2);
  if (length_ + tokens > capacity_) reserve(std::max(length_ + tokens, 2 * capacity_));
  auto &keys = keys_[static_cast<std::size_t>(layer)], &values = values_[static_cast<std::size_t>(layer)];
  if (keys.device() != k_BHtK.device() || keys.scalar_type() != k_BHtK.scalar_type()) {  // an engine computes in another type
    keys = keys.to(k_BHtK.options());
    values = values.to(k_BHtK.options());
  }
  keys.narrow(2, length_, tokens).copy_(k_BHtK);
  values.narrow(2, length_, tokens).copy_(v_BHtK);
  return {keys.narrow(2, 0, length_ + tokens), values.narrow(2, 0, length_ + tokens)};
}

void KvCache::advance(std::int64_t tokens, const at::Tensor& real_Bt) {
  if (real_.defined() || (real_Bt.defined() && !real_Bt.all().item<bool>())) {
    const auto options = at::TensorOptions().dtype(at::kBool).device(keys_.front().device());
    const auto before = real_.defined() ? real_ : at::ones({batch_, length_}, options);
    real_ = at::cat({before, real_Bt.defined() ? real_Bt : at::ones({batch_, tokens}, options)}, 1);
  }
  length_ += tokens;
}

}  // namespace troupe

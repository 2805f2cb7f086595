#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include <troupe/linear.hpp>
#include <troupe/parameter_source.hpp>

#include "dropout.hpp"
#include "llama_ops.hpp"

namespace troupe {

LinearImpl::LinearImpl(std::int64_t in, std::int64_t out, bool with_bias, at::ScalarType type, bool deferred) : Module("Linear"), in_(in), out_(out) {
  const auto add = [&](const char* name, at::IntArrayRef sizes) {
    return register_parameter(name, deferred ? deferred_parameter(sizes, type) : at::empty(sizes, at::TensorOptions().dtype(type)));
  };
  weight = add("weight", {out, in});
  if (with_bias) bias = add("bias", {out});
}

at::Tensor LinearImpl::forward(const at::Tensor& x) const {
  if (!adapter_ || merged()) return at::linear(x, weight, bias);
  const auto x_a = detail::dropout(x, is_training() ? adapter_->dropout : 0);
  return detail::lora_linear(x, x_a, weight, bias, adapter_->a_RI, adapter_->b_OR, adapter_->scaling);
}

void LinearImpl::set_adapter(Adapter adapter) {
  adapter_ = std::make_unique<Adapter>(std::move(adapter));
  register_module("lora_A", std::make_shared<Module>("lora_A"))->register_parameter("weight", adapter_->a_RI);
  register_module("lora_B", std::make_shared<Module>("lora_B"))->register_parameter("weight", adapter_->b_OR);
}

void LinearImpl::remove_adapter() {
  if (!adapter_) return;
  unregister_module("lora_A");
  unregister_module("lora_B");
  adapter_.reset();
}

}  // namespace troupe

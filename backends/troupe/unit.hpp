#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace troupe {

/// What the sharding engine does round a unit's forward.
class UnitHooks {
 public:
  virtual ~UnitHooks() = default;
  /// The unit's parameters are whole when it returns.
  virtual void pre_forward() = 0;
  /// Once for every output tensor that requires a gradient, before post_forward.
  virtual void on_output(const at::Tensor& output) = 0;
  virtual void post_forward() = 0;
};

/// Base of modules that may be a unit of sharding: Impl classes derive from it instead of torch::nn::Module. Without an
/// engine it behaves as any module.
class Unit : public torch::nn::Module {
 public:
  using torch::nn::Module::Module;
  void set_unit_hooks(std::shared_ptr<UnitHooks> hooks) { hooks_ = std::move(hooks); }
  [[nodiscard]] const std::shared_ptr<UnitHooks>& unit_hooks() const noexcept { return hooks_; }

 private:
  std::shared_ptr<UnitHooks> hooks_;
};

namespace detail {

template <class F>
void for_each_tensor(const at::Tensor& tensor, F& f) {
  if (tensor.defined()) f(tensor);
}
template <class T, class F>
void for_each_tensor(const std::vector<T>& values, F& f) {
  for (const auto& value : values) for_each_tensor(value, f);
}
template <class T, class F>
void for_each_tensor(const std::optional<T>& value, F& f) {
  if (value) for_each_tensor(*value, f);
}
template <class... T, class F>
void for_each_tensor(const std::tuple<T...>& values, F& f) {
  std::apply([&f](const auto&... value) { (for_each_tensor(value, f), ...); }, values);
}
template <class A, class B, class F>
void for_each_tensor(const std::pair<A, B>& values, F& f) {
  for_each_tensor(values.first, f);
  for_each_tensor(values.second, f);
}

}  // namespace detail

/// The holder that TROUPE_UNIT makes: its call operator runs the hooks round `forward`. Outputs: tensors, and vectors,
/// optionals, pairs and tuples of them.
template <class Impl>
class UnitHolder : public torch::nn::ModuleHolder<Impl> {
 public:
  using torch::nn::ModuleHolder<Impl>::ModuleHolder;
  static_assert(std::is_base_of_v<Unit, Impl>, "the Impl of a TROUPE_UNIT derives from troupe::Unit");

  template <class... Args>
  auto operator()(Args&&... args) {
    Impl& impl = *this->get();
    const auto hooks = impl.unit_hooks();  // lives over the call
    if (!hooks) return impl.forward(std::forward<Args>(args)...);
    hooks->pre_forward();
    auto output = impl.forward(std::forward<Args>(args)...);
    auto visit = [&hooks](const at::Tensor& tensor) {
      if (tensor.requires_grad()) hooks->on_output(tensor);
    };
    detail::for_each_tensor(output, visit);
    hooks->post_forward();
    return output;
  }
};

}  // namespace troupe

/// `TROUPE_UNIT(Block);` instead of `TORCH_MODULE(Block);` makes Block, a holder of BlockImpl, whose calls the sharding
/// engine sees: its parameters are gathered before `forward` and freed after it. Call it as `block(x)`; under
/// ShardParameters `block->forward(x)` meets parameters of shape [0] and throws.
#define TROUPE_UNIT(Name)                              \
  class Name : public troupe::UnitHolder<Name##Impl> { \
   public:                                             \
    using troupe::UnitHolder<Name##Impl>::UnitHolder;  \
    using Impl [[maybe_unused]] = Name##Impl;          \
  }

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>
#include <troupe/activation_checkpointing.hpp>
#include <troupe/parameter_source.hpp>
#include <type_traits>
#include <utility>

namespace troupe {

/// What the sharding engine does round a unit's forward.
class UnitHooks {
 public:
  virtual ~UnitHooks() = default;
  /// The unit's parameters are whole when it returns.
  virtual void pre_forward() = 0;
  /// A tensor argument as `forward` gets it: of floating point, in the type that parameters are gathered in.
  [[nodiscard]] virtual at::Tensor on_input(const at::Tensor& input) = 0;
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

  /// From the next call on, forward keeps its inputs instead of its activations and runs again in backward, without
  /// hooks of its own; see `troupe::checkpoint`. @param offload what is kept waits in host memory.
  void set_activation_checkpointing(bool on, bool offload = false) noexcept {
    checkpointing_ = on;
    offload_.on = on && offload;
  }
  /// How it is moved there: the sharding engine says, on devices with streams.
  void set_offload_stream(std::shared_ptr<detail::OffloadStream> stream) { offload_.stream = std::move(stream); }
  [[nodiscard]] bool activation_checkpointing() const noexcept { return checkpointing_; }
  [[nodiscard]] bool activation_offload() const noexcept { return offload_.on; }
  /// True if a parameter in it requires a gradient.
  [[nodiscard]] bool trains() const;

  /// Of the parameters in it that have no memory yet, by their names in this module.
  void set_parameter_source(std::shared_ptr<const ParameterSource> source) { source_ = std::move(source); }
  [[nodiscard]] const std::shared_ptr<const ParameterSource>& parameter_source() const noexcept { return source_; }
  /// On the model itself: checkpoints leave its frozen parameters out and hold this fingerprint of them instead; loading one
  /// into a model with another is refused. Empty: frozen parameters are saved as all others.
  void set_frozen_base(std::string fingerprint) { frozen_base_ = std::move(fingerprint); }
  [[nodiscard]] const std::string& frozen_base() const noexcept { return frozen_base_; }

 private:
  template <class Impl>
  friend class UnitHolder;
  [[noreturn]] void refuse_mode_change() const;
  [[noreturn]] void refuse_arguments() const;

  std::shared_ptr<UnitHooks> hooks_;
  std::shared_ptr<const ParameterSource> source_;
  std::string frozen_base_;
  bool checkpointing_ = false;
  detail::InputOffload offload_;
};

/// Sets it for the units in `model` that lie in no other; for `model` itself if it is the only one. Returns how many.
int set_activation_checkpointing(torch::nn::Module& model, bool on, bool offload = false);

/// The holder that TROUPE_UNIT makes: its call operator runs the hooks round `forward`. Outputs: tensors; vectors,
/// optionals, pairs and tuples of them; structs whose `tensors()` returns `std::tie` of their members.
template <class Impl>
class UnitHolder : public torch::nn::ModuleHolder<Impl> {
 public:
  using torch::nn::ModuleHolder<Impl>::ModuleHolder;
  static_assert(std::is_base_of_v<Unit, Impl>, "the Impl of a TROUPE_UNIT derives from troupe::Unit");

  template <class... Args>
  auto operator()(Args&&... args) {
    const auto hooks = this->get()->unit_hooks();  // lives over the call
    if (!hooks) return run(std::forward<Args>(args)...);
    hooks->pre_forward();
    auto output = run(as_input(*hooks, std::forward<Args>(args))...);
    static_assert(detail::is_known<decltype(output)>, "give the struct that forward returns a member `auto tensors() { return std::tie(...); }`");
    detail::for_each_tensor(output, [&hooks](const at::Tensor& tensor) {
      if (tensor.defined() && tensor.requires_grad()) hooks->on_output(tensor);
    });
    hooks->post_forward();
    return output;
  }

 private:
  template <class Arg>
  static decltype(auto) as_input(UnitHooks& hooks, Arg&& arg) {
    if constexpr (detail::is_tensor<std::remove_cvref_t<Arg>>) {
      return hooks.on_input(arg);
    } else {
      return std::forward<Arg>(arg);
    }
  }
  template <class... Args>
  auto run(Args&&... args) {
    auto& impl = *this->get();
    if (!impl.activation_checkpointing() || !c10::GradMode::is_enabled()) return impl.forward(std::forward<Args>(args)...);
    if constexpr (!detail::can_be_kept<Args...>) {
      impl.refuse_arguments();
    } else {
      bool leads_to_gradient = impl.trains();
      const auto look = [&](const at::Tensor& tensor) { leads_to_gradient = leads_to_gradient || (tensor.defined() && tensor.requires_grad()); };
      (detail::for_each_tensor(args, look), ...);
      if (!leads_to_gradient) return impl.forward(std::forward<Args>(args)...);
      auto forward = [module = this->ptr(), training = impl.is_training()](auto&&... values) {
        if (module->is_training() != training) module->refuse_mode_change();
        return module->forward(std::forward<decltype(values)>(values)...);
      };
      return detail::run_checkpointed(impl.offload_, std::move(forward), std::forward<Args>(args)...);
    }
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

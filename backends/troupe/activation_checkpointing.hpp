#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/ArrayRef.h>

#include <functional>
#include <memory>
#include <tuple>
#include <troupe/tensors_of.hpp>
#include <type_traits>
#include <utility>
#include <vector>

namespace troupe {

namespace detail {

class OffloadStream;

/// Whether kept inputs wait in host memory, and who moves them there; nullptr: operations of LibTorch.
struct InputOffload {
  bool on = false;
  std::shared_ptr<OffloadStream> stream;
};

/// One forward that keeps its inputs instead of its activations. Between construction and destruction no graph is
/// recorded.
class CheckpointedForward {
 public:
  using Function = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

  /// Notes the rank's random state and autocast state.
  /// @param inputs  undefined ones too; each has its gradient in backward if it requires one.
  /// @param offload inputs that require a gradient wait in host memory.
  CheckpointedForward(std::vector<at::Tensor> inputs, const InputOffload& offload);
  CheckpointedForward(const CheckpointedForward&) = delete;
  CheckpointedForward& operator=(const CheckpointedForward&) = delete;
  ~CheckpointedForward();
  /// The outputs, those of floating point as results of a node whose backward runs `again` on the inputs.
  [[nodiscard]] std::vector<at::Tensor> finish(std::vector<at::Tensor> outputs, Function again);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <class T>
inline constexpr bool is_array_ref = false;
template <class T>
inline constexpr bool is_array_ref<c10::ArrayRef<T>> = true;

/// Arguments that can be copied for later and own what they hold.
template <class... Args>
inline constexpr bool can_be_kept = ((std::is_copy_constructible_v<std::decay_t<Args>> && !is_array_ref<std::decay_t<Args>>) && ...);

/// `kept` as `Arg`, the argument it was copied from, was passed.
template <class Arg, class Kept>
decltype(auto) pass_as(Kept& kept) {
  if constexpr (!std::is_lvalue_reference_v<Arg>) {
    return std::move(kept);
  } else if constexpr (std::is_const_v<std::remove_reference_t<Arg>>) {
    return std::as_const(kept);
  } else {
    return (kept);
  }
}

template <class F, class... Args>
auto run_checkpointed(const InputOffload& offload, F f, Args&&... args) {
  using Kept = std::tuple<std::decay_t<Args>...>;
  Kept kept{args...};
  auto inputs = tensors_of(kept);
  put_tensors(kept, std::vector<at::Tensor>(inputs.size()));  // the node alone keeps them
  CheckpointedForward forward{std::move(inputs), offload};
  auto output = f(std::forward<Args>(args)...);
  static_assert(is_known<decltype(output)>, "what a checkpointed function returns has no tensors to see");
  auto again = [f = std::move(f), kept = std::move(kept)](const std::vector<at::Tensor>& tensors) mutable {
    auto copy = kept;
    put_tensors(copy, tensors);
    auto result = std::apply([&f](auto&... value) { return f(pass_as<Args>(value)...); }, copy);
    return tensors_of(result);
  };
  put_tensors(output, forward.finish(tensors_of(output), std::move(again)));
  return output;
}

}  // namespace detail

/// Activation checkpointing (Chen et al., arXiv 1604.06174): `f(args...)` without keeping what its backward needs; the
/// backward runs `f` again. Gradients are the same to the bit, dropout included, as far as it draws from
/// `rank_generator()` (or a GPU's own generator): LibTorch's CPU generator belongs to all ranks of a process.
///
/// Arguments are copied: tensors, containers and batches of tensors (which get gradients), other values as they are.
/// What `f` refers to must live until backward. Outputs as of a unit; those of floating point require a gradient even if
/// `f` detached them. Without grad mode it is a plain call. In backward `f` runs on the thread that runs backward.
///
/// Errors, in backward: Failure{InvalidArgument} when `f` gave other shapes than the first time; Failure{Unsupported}
/// for `torch::autograd::grad`, `backward(inputs)` and second derivatives. What `f` throws.
template <class F, class... Args>
auto checkpoint(F f, Args&&... args) {
  static_assert(detail::can_be_kept<Args...>, "arguments are kept until backward: pass what can be copied, vectors instead of ArrayRef");
  if (!c10::GradMode::is_enabled()) return f(std::forward<Args>(args)...);
  return detail::run_checkpointed({}, std::move(f), std::forward<Args>(args)...);
}

}  // namespace troupe

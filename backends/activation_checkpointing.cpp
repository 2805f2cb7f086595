#include "forward_state.hpp"
#include "host_copy.hpp"

#include <troupe/activation_checkpointing.hpp>
#include <troupe/errors.hpp>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <optional>

// Nodes and nested backwards are no stable interface of LibTorch.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "tested with LibTorch 2.11 only");

namespace troupe::detail {

namespace {

using torch::autograd::variable_list;

/// A tensor as forward was given it.
class KeptInput {
 public:
  KeptInput(const at::Tensor& tensor, std::size_t first_place, const InputOffload& offload)
      : first_place_(first_place), defined_(tensor.defined()), requires_grad_(defined_ && tensor.requires_grad()) {
    if (offload.on && requires_grad_) {
      host_.emplace(tensor, offload.stream);
    } else {
      saved_ = torch::autograd::SavedVariable{tensor, /*is_output=*/false};
    }
  }
  /// A leaf with the same values. Throws when the tensor was changed in place since.
  [[nodiscard]] at::Tensor as_leaf() const {
    if (!defined_) return {};
    return (host_ ? host_->on_device() : saved_.unpack().detach()).set_requires_grad(requires_grad_);
  }
  /// Where in the inputs the same tensor stood first.
  [[nodiscard]] std::size_t first_place() const noexcept { return first_place_; }
  [[nodiscard]] bool requires_grad() const noexcept { return requires_grad_; }

 private:
  torch::autograd::SavedVariable saved_;
  std::optional<HostCopy> host_;
  std::size_t first_place_;
  bool defined_;
  bool requires_grad_;
};

std::vector<KeptInput> keep(const std::vector<at::Tensor>& inputs, const InputOffload& offload) {
  std::vector<KeptInput> kept;
  for (auto input = inputs.begin(); input != inputs.end(); ++input) {
    const auto first = std::find_if(inputs.begin(), input, [&](const at::Tensor& other) { return other.is_same(*input); });
    kept.emplace_back(first == input ? *input : at::Tensor{}, first - inputs.begin(), offload);
  }
  return kept;
}

std::string describe(const at::Tensor& tensor) {
  return tensor.defined() ? c10::str(c10::toString(tensor.scalar_type()), tensor.sizes()) : "undefined";
}

/// Runs the forward again, records its graph this time, and runs that graph backward.
class CheckpointNode final : public torch::autograd::Node {
 public:
  CheckpointNode(const std::vector<at::Tensor>& inputs, const InputOffload& offload, ForwardState state)
      : inputs_(keep(inputs, offload)), state_(std::move(state)) {
    set_next_edges(torch::autograd::collect_next_edges(inputs));
  }
  void set_forward(CheckpointedForward::Function forward) { forward_ = std::move(forward); }
  /// The output at that place leads here.
  at::Tensor lead_here(std::size_t place, const at::Tensor& output) {
    auto result = at::Tensor{output.tensor_data()};  // an output may be an input, or stand at two places
    torch::autograd::set_history(result, shared_from_this());
    places_.push_back(place);
    return result;
  }
  void expect(const std::vector<at::Tensor>& outputs) {
    for (const auto& output : outputs) expected_.push_back(describe(output));
  }

  variable_list apply(variable_list&& grads) override;
  void release_variables() override {
    const std::scoped_lock lock{mutex_};
    inputs_.clear();
    forward_ = nullptr;
  }
  [[nodiscard]] std::string name() const override { return "TroupeCheckpoint"; }

 private:
  [[nodiscard]] std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs) const;

  std::vector<KeptInput> inputs_;
  CheckpointedForward::Function forward_;
  ForwardState state_;
  std::vector<std::size_t> places_;    ///< of the outputs that lead here, in the order of the gradients
  std::vector<std::string> expected_;  ///< dtype and shape of each output
};

std::vector<at::Tensor> CheckpointNode::recompute(const std::vector<at::Tensor>& inputs) const {
  const RestoredState restored{state_};
  const c10::AutoGradMode with_graph{true};
  auto outputs = forward_(inputs);
  for (std::size_t i = 0; i < expected_.size() || i < outputs.size(); ++i) {
    const auto now = i < outputs.size() ? describe(outputs[i]) : "nothing";
    const auto then = i < expected_.size() ? expected_[i] : "nothing";
    if (now == then) continue;
    throw Failure{Errc::InvalidArgument, "activation checkpointing: output " + std::to_string(i) + " was " + then +
                                             " in forward, but is " + now +
                                             " when forward runs again in backward; it must depend only on its arguments"};
  }
  return outputs;
}

variable_list CheckpointNode::apply(variable_list&& grads) {
  if (!torch::autograd::Engine::get_default_engine().is_checkpoint_valid()) {
    throw Failure{Errc::Unsupported,
                  "activation checkpointing: autograd::grad and backward with `inputs` do not reach what a checkpointed forward "
                  "uses; call backward() and read .grad(), or switch checkpointing off"};
  }
  if (c10::GradMode::is_enabled()) {
    throw Failure{Errc::Unsupported, "activation checkpointing: backward with create_graph (second derivatives) needs it switched off"};
  }
  if (!forward_) {
    throw Failure{Errc::InvalidArgument, "activation checkpointing: backward ran a second time; the first one takes retain_graph = true"};
  }
  std::vector<at::Tensor> inputs;
  for (const auto& kept : inputs_) {
    inputs.push_back(kept.first_place() == inputs.size() ? kept.as_leaf() : inputs[kept.first_place()]);
  }
  variable_list roots, root_grads;
  {
    const auto outputs = recompute(inputs);
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const auto& output = outputs[places_[i]];
      if (!grads[i].defined() || !output.requires_grad()) continue;
      roots.push_back(output);
      root_grads.push_back(std::move(grads[i]));
    }
  }
  if (!roots.empty()) torch::autograd::backward(roots, root_grads);
  variable_list result(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs_[i].first_place() == i && inputs_[i].requires_grad()) result[i] = inputs[i].grad();
  }
  return result;
}

at::Device device_of(const std::vector<at::Tensor>& inputs) {
  for (const auto& input : inputs) {
    if (input.defined() && !input.is_cpu()) return input.device();
  }
  return at::kCPU;
}

}  // namespace

struct CheckpointedForward::State {
  std::shared_ptr<CheckpointNode> node;
  c10::AutoGradMode no_graph{false};
};

CheckpointedForward::CheckpointedForward(std::vector<at::Tensor> inputs, const InputOffload& offload) {
  auto before = ForwardState::now(device_of(inputs));
  std::shared_ptr<CheckpointNode> node{new CheckpointNode{inputs, offload, std::move(before)}, torch::autograd::deleteNode};
  state_ = std::make_unique<State>(std::move(node));
}

CheckpointedForward::~CheckpointedForward() = default;

std::vector<at::Tensor> CheckpointedForward::finish(std::vector<at::Tensor> outputs, Function again) {
  auto& node = *state_->node;
  node.set_forward(std::move(again));
  node.expect(outputs);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    auto& output = outputs[i];
    if (output.defined() && torch::autograd::isDifferentiableType(output.scalar_type())) output = node.lead_here(i, output);
  }
  return outputs;
}

}  // namespace troupe::detail

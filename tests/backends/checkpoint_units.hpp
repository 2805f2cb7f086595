#pragma once

#include <troupe/random.hpp>
#include <troupe/unit.hpp>

#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tanh.h>

#include <functional>
#include <vector>

namespace troupe::test {

inline at::Tensor drop(const at::Tensor& x, double p) {
  return x * at::empty_like(x.detach()).bernoulli_(1 - p, rank_generator()).mul_(1 / (1 - p));
}

/// x + dropout(W2 tanh(W1 x)); counts its forwards.
struct BlockImpl : Unit {
  explicit BlockImpl(std::int64_t width = 8, std::int64_t inner = 16)
      : Unit("Block"),
        first(register_parameter("first", at::randn({inner, width}, rank_generator()) * 0.3)),
        second(register_parameter("second", at::randn({width, inner}, rank_generator()) * 0.3)) {}
  at::Tensor forward(const at::Tensor& x) {
    ++forwards;
    if (before) before();
    return x + drop(at::linear(at::tanh(at::linear(x, first)), second), is_training() ? 0.3 : 0);
  }
  at::Tensor first, second;
  int forwards = 0;
  std::function<void()> before;
};
TROUPE_UNIT(Block);

/// Blocks one after the other, a unit itself.
struct StackImpl : Unit {
  explicit StackImpl(int num_blocks, std::int64_t width = 8, std::int64_t inner = 16) : Unit("Stack") {
    for (int i = 0; i < num_blocks; ++i) blocks.emplace_back(register_module(std::to_string(i), Block{width, inner}));
  }
  at::Tensor forward(const at::Tensor& x) {
    auto y = x;
    for (auto& block : blocks) y = block(y);
    return y;
  }
  std::vector<Block> blocks;
};
TROUPE_UNIT(Stack);

/// What a step gave: the loss, the gradients of parameters and inputs, and the state that the random numbers are in.
struct Step {
  std::vector<at::Tensor> values;
  bool operator==(const Step& other) const {
    if (values.size() != other.values.size()) return false;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i].defined() != other.values[i].defined()) return false;
      if (values[i].defined() && !values[i].equal(other.values[i])) return false;
    }
    return true;
  }
};

/// One forward and backward from seed 1. @param loss called once.
inline Step step_of(torch::nn::Module& module, const std::vector<at::Tensor>& inputs, const std::function<at::Tensor()>& loss) {
  module.zero_grad();
  for (auto input : inputs) input.mutable_grad().reset();
  set_seed(1);
  const auto value = loss();
  value.backward();
  Step step{{value.detach().clone()}};
  for (const auto& parameter : module.parameters()) step.values.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::Tensor{});
  for (const auto& input : inputs) step.values.push_back(input.grad().defined() ? input.grad().clone() : at::Tensor{});
  step.values.push_back(rank_generator().get_state());
  return step;
}

}  // namespace troupe::test

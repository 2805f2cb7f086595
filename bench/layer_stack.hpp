#pragma once

// The model whose training several benches measure something beside, and the slowest rank's time.
#include <troupe/communicator.hpp>
#include <troupe/unit.hpp>

#include <ATen/ops/relu.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <string>
#include <vector>

namespace troupe::bench {

struct LayerImpl : Unit {
  LayerImpl(std::int64_t width, bool bias) : linear(register_module("linear", torch::nn::Linear(torch::nn::LinearOptions(width, width).bias(bias)))) {}
  at::Tensor forward(const at::Tensor& x) { return at::relu(linear(x)); }
  torch::nn::Linear linear;
};
TROUPE_UNIT(Layer);

/// x [*, width] to as much.
struct StackImpl : Unit {
  StackImpl(int num_layers, std::int64_t width, bool bias = false) {
    for (int i = 0; i < num_layers; ++i) layers.push_back(register_module("layer" + std::to_string(i), Layer(width, bias)));
  }
  at::Tensor forward(at::Tensor x) {
    for (auto& layer : layers) x = layer(x);
    return x;
  }
  std::vector<Layer> layers;
};
TROUPE_UNIT(Stack);

/// On every rank: the slowest one's.
inline double slowest(Communicator& group, double mine) {
  group.all_reduce({&mine, sizeof mine, DType::F64}, ReduceOp::Max).wait().or_throw();
  return mine;
}

}  // namespace troupe::bench

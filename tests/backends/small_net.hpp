#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/tanh.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <troupe/random.hpp>

#include <ATen/ops/normal.h>

#include <ATen/core/Generator.h>
#include <ATen/core/grad_mode.h>

namespace troupe::test {

/// Three linear layers; the last one is used only when asked for. Weights are drawn from the rank's generator.
struct SmallNetImpl : torch::nn::Module {
  explicit SmallNetImpl(std::int64_t width = 8)
      : first(register_module("first", torch::nn::Linear(6, width))),
        second(register_module("second", torch::nn::Linear(width, 3))),
        spare(register_module("spare", torch::nn::Linear(3, 3))) {
    at::NoGradGuard no_grad;
    for (auto& p : parameters()) p.normal_(0, 0.3, rank_generator());
  }
  at::Tensor forward(const at::Tensor& x, bool use_spare = true) {
    auto y = second(at::tanh(first(x)));
    return use_spare ? spare(y) : y;
  }
  torch::nn::Linear first, second, spare;
};
using SmallNet = std::shared_ptr<SmallNetImpl>;

}  // namespace troupe::test

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <troupe/bert.hpp>
#include <troupe/unit.hpp>

// B: batch, T: tokens, D: hidden size, H: heads, K: size of a head

namespace troupe::detail {

/// Handles of parameters that a module owns: what an engine sets with `set_data` is seen here too.
struct Linear {
  at::Tensor weight;
  at::Tensor bias;
  [[nodiscard]] at::Tensor operator()(const at::Tensor& x) const;
};

struct LayerNorm {
  at::Tensor weight;
  at::Tensor bias;
  double eps = 0;
  [[nodiscard]] at::Tensor operator()(const at::Tensor& x) const;
};

/// Adds a child module `name` that holds "weight" and "bias", not initialised.
[[nodiscard]] Linear add_linear(torch::nn::Module& parent, const std::string& name, std::int64_t in,
                                std::int64_t out);
[[nodiscard]] LayerNorm add_layer_norm(torch::nn::Module& parent, const std::string& name,
                                       std::int64_t size, double eps);
/// A child without parameters of its own.
[[nodiscard]] std::shared_ptr<torch::nn::Module> add_child(torch::nn::Module& parent,
                                                           const std::string& name);

/// Draws a fresh value for the parameter of that name: LayerNorm 1 and 0, biases 0, others normal
/// from the rank's generator.
void initialize_parameter(const std::string& name, const at::Tensor& parameter,
                          const BertConfig& config);

/// One encoder layer: self-attention and feed-forward, each added to its input and normalised.
class BertLayerImpl : public Unit {
 public:
  explicit BertLayerImpl(const BertConfig& config);
  /// @param mask_B11T added to the attention scores; undefined: every token is real.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x_BTD, const at::Tensor& mask_B11T);

 private:
  [[nodiscard]] at::Tensor attend(const at::Tensor& x_BTD, const at::Tensor& mask_B11T) const;
  [[nodiscard]] at::Tensor activate(const at::Tensor& x) const;

  std::int64_t num_heads_;
  double hidden_dropout_;
  double attention_dropout_;
  std::string activation_;
  Linear query_, key_, value_, attention_output_, intermediate_, output_;
  LayerNorm attention_norm_, output_norm_;
};
TROUPE_UNIT(BertLayer);

}  // namespace troupe::detail

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// N: tokens, D: hidden size, V: vocabulary

// Operations of a Llama, each with a node of its own in the graph: LibTorch has none of them as one kernel on a CPU. What is not on a CPU, or
// neither fp32 nor bf16, goes through LibTorch's operations.

namespace troupe::detail {

/// x / √(mean x² + eps) · weight over the last dimension, in fp32 whatever the type.
[[nodiscard]] at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// silu(gate) · up.
[[nodiscard]] at::Tensor silu_times(const at::Tensor& gate, const at::Tensor& up);

/// Mean of -log softmax(x W^T)[target] over N tokens, in fp32. Logits exist for a few tokens at a time; with gradients wanted, forward makes
/// them, since both need the logits.
/// @param targets_N  in [0, V), Long.
[[nodiscard]] at::Tensor linear_cross_entropy(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N);

/// x W^T + b + scaling · (x_a A^T) B^T; x_a is x, or x with dropout.
[[nodiscard]] at::Tensor lora_linear(const at::Tensor& x, const at::Tensor& x_a, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& a_RI,
                                     const at::Tensor& b_OR, double scaling);

}  // namespace troupe::detail

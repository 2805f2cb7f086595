#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace troupe::detail {

// One pass over a list of gradients, with as many threads as the rank has (at::get_num_threads).
// Tensors: fp32, fp64, bf16 or fp16; undefined and empty ones are passed over, 16-bit floats computed in fp32. On a device it
// is LibTorch's operations that do it (device_gradients.hpp).
// Results do not depend on the number of threads. Errors: another dtype or layout throws Failure{Unsupported}.

/// Multiplies by fp32(1/scale), as torch.amp.GradScaler does; true when an element was infinite or NaN before.
[[nodiscard]] bool unscale_(const std::vector<at::Tensor>& gradients, double scale);

/// Whether no element is infinite or NaN.
[[nodiscard]] bool all_finite(const std::vector<at::Tensor>& gradients);

/// Sum of the squares of all elements, added in fp64; infinite or NaN when an element is.
[[nodiscard]] double sum_of_squares(const std::vector<at::Tensor>& gradients);

void scale_(const std::vector<at::Tensor>& gradients, float factor);

/// Brings every element into [-limit, limit]; NaN stays.
void clamp_(const std::vector<at::Tensor>& gradients, float limit);

}  // namespace troupe::detail

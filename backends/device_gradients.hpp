#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace troupe::detail {

// What gradients.hpp does, by LibTorch's operations, for gradients on a device. Each call waits for the device once, if it
// has a result. Tested on the CPU; not run on a GPU. Errors: a sparse gradient throws Failure{Unsupported}.

[[nodiscard]] bool multiply_by_operations(const std::vector<at::Tensor>& gradients, float factor);
[[nodiscard]] bool all_finite_by_operations(const std::vector<at::Tensor>& gradients);
[[nodiscard]] double sum_of_squares_by_operations(const std::vector<at::Tensor>& gradients);
void scale_by_operations(const std::vector<at::Tensor>& gradients, float factor);
void clamp_by_operations(const std::vector<at::Tensor>& gradients, float limit);

}  // namespace troupe::detail

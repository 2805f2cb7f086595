#pragma once

#include <ATen/core/Tensor.h>

#include <troupe/communicator.hpp>

#include <string>

namespace troupe {

/// Throws Failure{Unsupported} for element types that communicators do not carry.
[[nodiscard]] DType dtype_of(at::ScalarType type);
/// The elements of a dense tensor in memory order, borrowed: memory that the communicator must reach.
[[nodiscard]] Buffer buffer_of(const at::Tensor& tensor);
/// A tensor [numel] over `memory`, which lies on `device`; it lives with the tensor.
[[nodiscard]] at::Tensor tensor_over(std::shared_ptr<void> memory, std::int64_t numel, at::ScalarType type, at::Device device = at::kCPU);
/// A zeroed tensor [numel] in memory of `communicator.allocate`, which lies on `device`.
[[nodiscard]] at::Tensor communicator_tensor(Communicator& communicator, std::int64_t numel, at::ScalarType type, at::Device device = at::kCPU);
[[nodiscard]] at::Device torch_device(const Device& device);
/// "F32 [8, 2]"
[[nodiscard]] std::string describe(at::ScalarType type, at::IntArrayRef sizes);

}  // namespace troupe

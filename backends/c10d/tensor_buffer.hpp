#pragma once

#include <ATen/core/Tensor.h>

#include <troupe/communicator.hpp>

#include <string>

namespace troupe {

/// Throws Failure{Unsupported} for element types that communicators do not carry.
[[nodiscard]] DType dtype_of(at::ScalarType type);
/// The elements of a dense CPU tensor in memory order, borrowed.
[[nodiscard]] Buffer buffer_of(const at::Tensor& tensor);
/// A zeroed tensor [numel] in memory of `communicator.allocate`.
[[nodiscard]] at::Tensor communicator_tensor(Communicator& communicator, std::int64_t numel, at::ScalarType type);
/// "F32 [8, 2]"
[[nodiscard]] std::string describe(at::ScalarType type, at::IntArrayRef sizes);

}  // namespace troupe

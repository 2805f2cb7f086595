#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <troupe/buffer.hpp>
#include <troupe/errors.hpp>
#include <utility>
#include <vector>

namespace troupe::detail {

/// Of weights: throws Failure{InvalidArgument} for what is none of F32, BF16, F16 and F64.
[[nodiscard]] inline c10::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::F64: return c10::kDouble;
    case DType::F32: return c10::kFloat;
    case DType::BF16: return c10::kBFloat16;
    case DType::F16: return c10::kHalf;
    default: throw Failure{Errc::InvalidArgument, "weights of type " + std::string(name(dtype)) + "; they are F32, BF16, F16 or F64"};
  }
}

/// model.safetensors, or shards of at most so many bytes (0: no limit) and their index.
void write_shards(const std::filesystem::path& directory, const std::vector<std::pair<std::string, at::Tensor>>& tensors, std::uint64_t max_shard_bytes);

}  // namespace troupe::detail

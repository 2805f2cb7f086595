#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <troupe/buffer.hpp>

namespace troupe {

inline at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::F64: return at::kDouble;
    case DType::F32: return at::kFloat;
    case DType::F16: return at::kHalf;
    case DType::BF16: return at::kBFloat16;
    case DType::I64: return at::kLong;
    case DType::I32: return at::kInt;
    case DType::I16: return at::kShort;
    case DType::I8: return at::kChar;
    case DType::U8: return at::kByte;
    case DType::Bool: return at::kBool;
  }
  return at::kByte;
}

inline DType dtype_of(at::ScalarType type) {
  for (int i = 0; i <= static_cast<int>(DType::Bool); ++i) {
    if (scalar_type(static_cast<DType>(i)) == type) return static_cast<DType>(i);
  }
  throw std::invalid_argument(std::string("tensors of type ") + c10::toString(type) + " cannot be communicated");
}

/// A tensor [n] over borrowed memory.
inline at::Tensor view_of(ConstBuffer buffer) {
  return at::from_blob(const_cast<void*>(buffer.data), {static_cast<std::int64_t>(buffer.count())},
                       at::TensorOptions().dtype(scalar_type(buffer.dtype)));
}

/// A contiguous tensor's memory.
inline Buffer buffer_of(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.nbytes(), dtype_of(tensor.scalar_type())};
}

}  // namespace troupe

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <troupe/foreign_tensors.hpp>

namespace troupe {
namespace {

/// In the order of TorchDtype.
constexpr std::array<at::ScalarType, 22> kTypes{at::kByte,
                                                at::kChar,
                                                at::kShort,
                                                at::kInt,
                                                at::kLong,
                                                at::kHalf,
                                                at::kFloat,
                                                at::kDouble,
                                                at::kComplexHalf,
                                                at::kComplexFloat,
                                                at::kComplexDouble,
                                                at::kBool,
                                                at::kBFloat16,
                                                at::kUInt16,
                                                at::kUInt32,
                                                at::kUInt64,
                                                at::kFloat8_e5m2,
                                                at::kFloat8_e4m3fn,
                                                at::kFloat8_e5m2fnuz,
                                                at::kFloat8_e4m3fnuz,
                                                at::kFloat8_e8m0fnu,
                                                at::kFloat4_e2m1fn_x2};

}  // namespace

at::Tensor to_tensor(const ForeignTensor& tensor) {
  const auto type = kTypes[static_cast<std::size_t>(tensor.dtype)];
  if (tensor.elements() == 0) return at::empty(tensor.shape, type);
  auto* const first = tensor.storage.data() + tensor.offset;
  if (reinterpret_cast<std::uintptr_t>(first) % bytes_of(tensor.dtype) == 0) {
    return at::from_blob(
        first, tensor.shape, tensor.strides, [keep = tensor.keep](void*) {}, type);
  }
  const auto copy = at::empty(tensor.shape, type);
  const auto bytes = contiguous_bytes(tensor);
  std::memcpy(copy.data_ptr(), bytes.data(), bytes.size());
  return copy;
}

TensorMap to_tensors(const ForeignTensors& tensors) {
  TensorMap out;
  for (const auto& [name, tensor] : tensors) out.emplace(name, to_tensor(tensor));
  return out;
}

TensorMap read_torch_tensors(const std::filesystem::path& file) {
  return to_tensors(read_torch_contents(file).tensors);
}

}  // namespace troupe

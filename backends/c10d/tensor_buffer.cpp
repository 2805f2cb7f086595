#include "tensor_buffer.hpp"

#include <troupe/errors.hpp>

#include <ATen/ops/from_blob.h>

#include <sstream>

namespace troupe {

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return DType::F64;
    case at::kFloat: return DType::F32;
    case at::kHalf: return DType::F16;
    case at::kBFloat16: return DType::BF16;
    case at::kLong: return DType::I64;
    case at::kInt: return DType::I32;
    case at::kShort: return DType::I16;
    case at::kChar: return DType::I8;
    case at::kByte: return DType::U8;
    case at::kBool: return DType::Bool;
    default: throw Failure{Errc::Unsupported, std::string{"communicators do not carry tensors of type "} + c10::toString(type)};
  }
}

Buffer buffer_of(const at::Tensor& tensor) {
  return {tensor.data_ptr(), static_cast<std::size_t>(tensor.numel()) * tensor.element_size(), dtype_of(tensor.scalar_type())};
}

at::Tensor tensor_over(std::shared_ptr<void> memory, std::int64_t numel, at::ScalarType type, at::Device device) {
  auto* data = memory.get();
  return at::from_blob(
      data, {numel}, [memory = std::move(memory)](void*) mutable { memory.reset(); }, at::TensorOptions().dtype(type).device(device));
}

at::Tensor communicator_tensor(Communicator& communicator, std::int64_t numel, at::ScalarType type, at::Device device) {
  return tensor_over(communicator.allocate(static_cast<std::size_t>(numel) * c10::elementSize(type)), numel, type, device);
}

at::Device torch_device(const Device& device) {
  if (device.kind == Device::Kind::Cpu) return at::kCPU;
  return {at::kCUDA, static_cast<at::DeviceIndex>(device.index)};
}

std::string describe(at::ScalarType type, at::IntArrayRef sizes) {
  std::ostringstream text;
  text << name(dtype_of(type)) << " " << sizes;
  return text.str();
}

}  // namespace troupe

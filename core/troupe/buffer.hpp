#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace troupe {

/// Element types, by the names that safetensors gives them.
enum class DType : std::uint8_t { F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool };

[[nodiscard]] constexpr std::size_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::F64:
    case DType::I64: return 8;
    case DType::F32:
    case DType::I32: return 4;
    case DType::F16:
    case DType::BF16:
    case DType::I16: return 2;
    case DType::I8:
    case DType::U8:
    case DType::Bool: return 1;
  }
  return 0;
}

[[nodiscard]] constexpr std::string_view name(DType dtype) noexcept {
  constexpr std::string_view names[] = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"};
  return names[static_cast<std::size_t>(dtype)];
}

/// Borrowed contiguous elements: how tensors cross seams that do not know LibTorch.
struct Buffer {
  void* data = nullptr;
  std::size_t bytes = 0;
  DType dtype = DType::U8;

  [[nodiscard]] std::size_t count() const noexcept { return bytes / size_of(dtype); }
};

/// The same, read only.
struct ConstBuffer {
  const void* data = nullptr;
  std::size_t bytes = 0;
  DType dtype = DType::U8;

  ConstBuffer() = default;
  ConstBuffer(const void* d, std::size_t b, DType t) : data(d), bytes(b), dtype(t) {}
  ConstBuffer(const Buffer& b) : data(b.data), bytes(b.bytes), dtype(b.dtype) {}  // NOLINT: a view
  [[nodiscard]] std::size_t count() const noexcept { return bytes / size_of(dtype); }
};

}  // namespace troupe

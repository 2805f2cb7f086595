#include <algorithm>
#include <array>
#include <cstring>
#include <troupe/errors.hpp>
#include <troupe/foreign_pickle.hpp>

#include "tensor_shape.hpp"

namespace troupe {
namespace {

struct Row {
  std::string_view name;
  std::uint64_t bytes;
};
constexpr std::array<Row, 22> kDtypes{{{"uint8", 1},           {"int8", 1},
                                       {"int16", 2},           {"int32", 4},
                                       {"int64", 8},           {"float16", 2},
                                       {"float32", 4},         {"float64", 8},
                                       {"complex32", 4},       {"complex64", 8},
                                       {"complex128", 16},     {"bool", 1},
                                       {"bfloat16", 2},        {"uint16", 2},
                                       {"uint32", 4},          {"uint64", 8},
                                       {"float8_e5m2", 1},     {"float8_e4m3fn", 1},
                                       {"float8_e5m2fnuz", 1}, {"float8_e4m3fnuz", 1},
                                       {"float8_e8m0fnu", 1},  {"float4_e2m1fn_x2", 1}}};

/// Copies rows from `source`, whose element at `index` lies at sum(index * stride).
void copy_strided(const ForeignTensor& tensor, std::byte* out) {
  const auto item = bytes_of(tensor.dtype);
  const auto rank = tensor.shape.size();
  std::vector<std::int64_t> index(rank, 0);
  const auto count = tensor.elements();
  std::uint64_t at = tensor.offset;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::memcpy(out + i * item, tensor.storage.data() + at, item);
    for (auto d = rank; d-- > 0;) {
      at += static_cast<std::uint64_t>(tensor.strides[d]) * item;
      if (++index[d] < tensor.shape[d]) break;
      at -= static_cast<std::uint64_t>(tensor.strides[d]) * item *
            static_cast<std::uint64_t>(tensor.shape[d]);
      index[d] = 0;
    }
  }
}

}  // namespace

namespace detail {

std::optional<std::uint64_t> count_elements(const std::vector<std::int64_t>& shape) noexcept {
  constexpr std::uint64_t most = 1ULL << 56;
  std::uint64_t filled = 1;
  bool empty = false;
  for (const auto size : shape) {
    if (size < 0) return std::nullopt;
    empty = empty || size == 0;
    if (size != 0 && __builtin_mul_overflow(filled, static_cast<std::uint64_t>(size), &filled))
      return std::nullopt;
    if (filled > most) return std::nullopt;
  }
  return empty ? 0 : filled;
}

std::vector<std::int64_t> row_major(const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> out(shape.size(), 1);
  for (auto d = shape.size(); d-- > 1;) out[d - 1] = out[d] * std::max<std::int64_t>(shape[d], 1);
  return out;
}

}  // namespace detail

std::string_view name(TorchDtype dtype) noexcept {
  return kDtypes[static_cast<std::size_t>(dtype)].name;
}

std::uint64_t bytes_of(TorchDtype dtype) noexcept {
  return kDtypes[static_cast<std::size_t>(dtype)].bytes;
}

std::optional<TorchDtype> torch_dtype(std::string_view name) noexcept {
  const auto found = std::ranges::find(kDtypes, name, &Row::name);
  if (found == kDtypes.end()) return std::nullopt;
  return static_cast<TorchDtype>(found - kDtypes.begin());
}

std::uint64_t ForeignTensor::elements() const noexcept {
  std::uint64_t out = 1;
  for (const auto size : shape) out *= static_cast<std::uint64_t>(size);
  return out;
}

bool ForeignTensor::contiguous() const noexcept {
  std::int64_t expected = 1;
  for (auto d = shape.size(); d-- > 0;) {
    if (shape[d] == 0) return true;
    if (shape[d] != 1 && strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

std::vector<std::byte> contiguous_bytes(const ForeignTensor& tensor) {
  // Strides of 0 make any number of elements out of one: memory is bounded by what the file holds.
  if (tensor.elements() > tensor.storage.size() / bytes_of(tensor.dtype)) {
    throw Failure{Errc::Unsupported, "a tensor of " + std::to_string(tensor.elements()) + " elements repeats those of a storage of " +
                                         std::to_string(tensor.storage.size()) + " bytes; call contiguous() before it is saved"};
  }
  std::vector<std::byte> out(tensor.elements() * bytes_of(tensor.dtype));
  if (out.empty()) return out;
  if (tensor.contiguous()) {
    std::memcpy(out.data(), tensor.storage.data() + tensor.offset, out.size());
  } else {
    copy_strided(tensor, out.data());
  }
  return out;
}

ForeignTensor joined(const std::vector<ForeignTensor>& parts, std::vector<std::int64_t> shape,
                     std::string_view what) {
  const auto refuse = [&](const std::string& text) {
    throw Failure{Errc::FileCorrupt, std::string(what) + ": " + text};
  };
  const auto wanted = detail::count_elements(shape);
  if (!wanted) refuse("has an impossible shape");
  std::uint64_t there = 0;
  for (const auto& part : parts) there += part.elements();
  if (there != *wanted) {
    refuse("should have " + std::to_string(*wanted) + " elements, the file has " +
           std::to_string(there));
  }
  ForeignTensor out;
  if (!parts.empty()) out.dtype = parts.front().dtype;
  out.strides = detail::row_major(shape);
  out.shape = std::move(shape);
  for (const auto& part : parts) {
    if (part.dtype != out.dtype) refuse("has parts of several dtypes");
  }
  if (parts.size() == 1 && parts.front().contiguous()) {
    out.offset = parts.front().offset;
    out.storage = parts.front().storage;
    out.keep = parts.front().keep;
    return out;
  }
  const auto memory = std::make_shared<std::vector<std::byte>>();
  memory->reserve(*wanted * bytes_of(out.dtype));
  for (const auto& part : parts) {
    const auto bytes = contiguous_bytes(part);
    memory->insert(memory->end(), bytes.begin(), bytes.end());
  }
  out.storage = *memory;
  out.keep = memory;
  return out;
}

}  // namespace troupe

#pragma once

#include <troupe/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// Bytes of a tensor; nothing when they exceed 63 bits or do not end at a whole byte.
[[nodiscard]] std::optional<std::uint64_t> tensor_bytes(SafetensorsDtype dtype, const std::vector<std::uint64_t>& shape) noexcept;

/// The order in a file: dtypes descending, so that data are aligned, names ascending within.
[[nodiscard]] inline bool lies_before(SafetensorsDtype a_dtype, const std::string& a, SafetensorsDtype b_dtype, const std::string& b) {
  return a_dtype != b_dtype ? a_dtype > b_dtype : a < b;
}

/// The length, the JSON of `tensors` in the given order, and spaces, so that data begin at a multiple of `alignment`. Throws
/// Failure{InvalidArgument} that begins with `what` when a name or the metadata is no UTF-8, or when readers would refuse
/// a header that long.
[[nodiscard]] std::string safetensors_header(std::span<const SafetensorsEntry> tensors, const std::map<std::string, std::string>& metadata,
                                             std::size_t alignment, const std::string& what);

/// As `parse_safetensors`, given the length and the header of a file of `file_bytes` bytes; `head` may be longer.
[[nodiscard]] SafetensorsHeader parse_safetensors_head(std::span<const std::byte> head, std::uint64_t file_bytes, std::string_view what);

}  // namespace troupe::detail

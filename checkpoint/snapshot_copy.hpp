#pragma once

#include <troupe/safetensors.hpp>

#include <cstddef>

namespace troupe::detail {

/// Copies `bytes` of numbers of `dtype`, past the caches where it is worth it, and says whether all are finite. Looking costs nothing
/// that the copy does not wait for anyway.
/// @param to aligned to 64 bytes.
[[nodiscard]] bool copy_and_check(std::byte* to, const std::byte* from, std::size_t bytes, SafetensorsDtype dtype);
/// The same without looking.
void copy_past_cache(std::byte* to, const std::byte* from, std::size_t bytes);
/// True when all numbers are finite; integers are.
[[nodiscard]] bool all_finite(const std::byte* from, std::size_t bytes, SafetensorsDtype dtype);

}  // namespace troupe::detail

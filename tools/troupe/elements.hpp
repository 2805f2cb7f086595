#pragma once

#include <troupe/safetensors.hpp>

#include <cstddef>
#include <span>
#include <vector>

namespace troupe::tools {

/// Whether elements of this type can be read as numbers: all but the 4- and 6-bit ones, bare exponents and complex.
[[nodiscard]] bool is_number(SafetensorsDtype dtype) noexcept;
/// As numbers; 64-bit integers are rounded to double.
void decode(SafetensorsDtype dtype, std::span<const std::byte> bytes, std::vector<double>& numbers);
/// Rounds to nearest, ties to even, as PyTorch does. @param dtype F32, F16 or BF16.
void encode(SafetensorsDtype dtype, std::span<const double> numbers, std::span<std::byte> bytes);

}  // namespace troupe::tools

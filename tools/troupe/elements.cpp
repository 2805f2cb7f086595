#include "elements.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace troupe::tools {

namespace {

template <class T>
void decode_as(std::span<const std::byte> bytes, std::vector<double>& numbers) {
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    numbers[i] = static_cast<double>(value);
  }
}

// A float of 1 + exponent + mantissa bits. @param has_infinity false: as E4M3FN, only all ones are NaN.
double small_float(std::uint32_t bits, int exponent_bits, int mantissa_bits, bool has_infinity) {
  const auto mantissa = bits & ((1u << mantissa_bits) - 1);
  const auto exponent = (bits >> mantissa_bits) & ((1u << exponent_bits) - 1);
  const double sign = (bits >> (mantissa_bits + exponent_bits)) & 1 ? -1 : 1;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const bool top = exponent == (1u << exponent_bits) - 1;
  if (top && has_infinity) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (top && mantissa == (1u << mantissa_bits) - 1) return std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(static_cast<double>(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(static_cast<double>(mantissa + (1u << mantissa_bits)), static_cast<int>(exponent) - bias - mantissa_bits);
}

template <class T>
void decode_small(std::span<const std::byte> bytes, std::vector<double>& numbers, int exponent_bits, int mantissa_bits, bool has_infinity) {
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    T bits;
    std::memcpy(&bits, bytes.data() + i * sizeof(T), sizeof(T));
    numbers[i] = small_float(bits, exponent_bits, mantissa_bits, has_infinity);
  }
}

std::uint16_t to_bf16(float value) {
  auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return 0x7FC0;
  bits += 0x7FFF + ((bits >> 16) & 1);
  return static_cast<std::uint16_t>(bits >> 16);
}

std::uint16_t to_f16(float value) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7E00);
  const float size = std::fabs(value);
  if (size >= 65520.0F) return static_cast<std::uint16_t>(sign | 0x7C00);
  if (size < std::ldexp(1.0F, -14)) return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(std::ldexp(size, 24))));
  const auto bits = std::bit_cast<std::uint32_t>(size) + 0xFFF + ((std::bit_cast<std::uint32_t>(size) >> 13) & 1);
  return static_cast<std::uint16_t>(sign | ((bits - (112u << 23)) >> 13));
}

}  // namespace

bool is_number(SafetensorsDtype dtype) noexcept {
  switch (dtype) {
    case SafetensorsDtype::F4:
    case SafetensorsDtype::F6_E2M3:
    case SafetensorsDtype::F6_E3M2:
    case SafetensorsDtype::F8_E8M0:
    case SafetensorsDtype::F8_E4M3FNUZ:
    case SafetensorsDtype::F8_E5M2FNUZ:
    case SafetensorsDtype::C64:
      return false;
    default:
      return true;
  }
}

void decode(SafetensorsDtype dtype, std::span<const std::byte> bytes, std::vector<double>& numbers) {
  numbers.resize(bytes.size() * 8 / bits_of(dtype));
  switch (dtype) {
    case SafetensorsDtype::BOOL:
    case SafetensorsDtype::U8:
      return decode_as<std::uint8_t>(bytes, numbers);
    case SafetensorsDtype::I8:
      return decode_as<std::int8_t>(bytes, numbers);
    case SafetensorsDtype::I16:
      return decode_as<std::int16_t>(bytes, numbers);
    case SafetensorsDtype::U16:
      return decode_as<std::uint16_t>(bytes, numbers);
    case SafetensorsDtype::I32:
      return decode_as<std::int32_t>(bytes, numbers);
    case SafetensorsDtype::U32:
      return decode_as<std::uint32_t>(bytes, numbers);
    case SafetensorsDtype::I64:
      return decode_as<std::int64_t>(bytes, numbers);
    case SafetensorsDtype::U64:
      return decode_as<std::uint64_t>(bytes, numbers);
    case SafetensorsDtype::F32:
      return decode_as<float>(bytes, numbers);
    case SafetensorsDtype::F64:
      return decode_as<double>(bytes, numbers);
    case SafetensorsDtype::F16:
      return decode_small<std::uint16_t>(bytes, numbers, 5, 10, true);
    case SafetensorsDtype::BF16:
      return decode_small<std::uint16_t>(bytes, numbers, 8, 7, true);
    case SafetensorsDtype::F8_E5M2:
      return decode_small<std::uint8_t>(bytes, numbers, 5, 2, true);
    case SafetensorsDtype::F8_E4M3:
      return decode_small<std::uint8_t>(bytes, numbers, 4, 3, false);
    default:
      numbers.clear();
  }
}

void encode(SafetensorsDtype dtype, std::span<const double> numbers, std::span<std::byte> bytes) {
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto value = static_cast<float>(numbers[i]);
    if (dtype == SafetensorsDtype::F32) {
      std::memcpy(bytes.data() + i * 4, &value, 4);
    } else {
      const auto half = dtype == SafetensorsDtype::BF16 ? to_bf16(value) : to_f16(value);
      std::memcpy(bytes.data() + i * 2, &half, 2);
    }
  }
}

}  // namespace troupe::tools

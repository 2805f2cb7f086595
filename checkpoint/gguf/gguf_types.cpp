// Element types of ggml, as its block structs lay them out. Compiled without contraction (checkpoint/CMakeLists.txt): a
// fused multiply-add rounds once where the reference rounds twice.
#include <troupe/errors.hpp>
#include <troupe/gguf.hpp>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace troupe {

namespace {

constexpr std::uint64_t block = 32;  // elements of every quantised block here

constexpr std::array<const char*, 40> names{"F32",  "F16",    "Q4_0",    "Q4_1",   "Q4_2",   "Q4_3",   "Q5_0",   "Q5_1",   "Q8_0",  "Q8_1",
                                            "Q2_K", "Q3_K",   "Q4_K",    "Q5_K",   "Q6_K",   "Q8_K",   "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
                                            "IQ4_NL", "IQ3_S", "IQ2_S",  "IQ4_XS", "I8",     "I16",    "I32",    "I64",    "F64",   "IQ1_M",
                                            "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};

std::uint16_t half_bits(const std::byte* at) {
  std::uint16_t out;
  std::memcpy(&out, at, 2);
  return out;
}

float half(const std::byte* at) {
  const std::uint32_t bits = half_bits(at);
  const auto sign = (bits & 0x8000U) << 16;
  const auto exponent = bits >> 10 & 0x1FU;
  const auto fraction = bits & 0x3FFU;
  if (exponent == 0) {  // zero or a subnormal: an exact multiple of 2^-24
    const auto value = static_cast<float>(fraction) * 0x1p-24F;
    return sign == 0 ? value : -value;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000U | fraction << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

unsigned nibble(const std::byte* quants, unsigned i) {  // the low nibbles are the first half
  const auto byte = std::to_integer<unsigned>(quants[i % 16]);
  return i < 16 ? byte & 15U : byte >> 4;
}

unsigned fifth_bit(const std::byte* bits, unsigned i) { return std::to_integer<unsigned>(bits[i / 8]) >> i % 8 & 1U; }

void one_block(GgufType type, const std::byte* in, float* out) {
  const auto scale = half(in);
  switch (type) {
    case GgufType::Q8_0:
      for (unsigned i = 0; i < block; ++i) out[i] = static_cast<float>(static_cast<std::int8_t>(std::to_integer<std::uint8_t>(in[2 + i]))) * scale;
      return;
    case GgufType::Q4_0:
      for (unsigned i = 0; i < block; ++i) out[i] = scale * static_cast<float>(static_cast<int>(nibble(in + 2, i)) - 8);
      return;
    case GgufType::Q4_1: {
      const auto least = half(in + 2);
      for (unsigned i = 0; i < block; ++i) out[i] = scale * static_cast<float>(nibble(in + 4, i)) + least;
      return;
    }
    case GgufType::Q5_0:
      for (unsigned i = 0; i < block; ++i) out[i] = scale * static_cast<float>(static_cast<int>(nibble(in + 6, i) | fifth_bit(in + 2, i) << 4) - 16);
      return;
    default: {  // Q5_1
      const auto least = half(in + 2);
      for (unsigned i = 0; i < block; ++i) out[i] = scale * static_cast<float>(nibble(in + 8, i) | fifth_bit(in + 4, i) << 4) + least;
    }
  }
}

}  // namespace

std::string name(GgufType type) {
  const auto number = static_cast<std::uint32_t>(type);
  return number < names.size() ? names[number] : "type " + std::to_string(number);
}

GgufBlock block_of(GgufType type) {
  switch (type) {
    case GgufType::F32: return {1, 4};
    case GgufType::F16: return {1, 2};
    case GgufType::BF16: return {1, 2};
    case GgufType::Q8_0: return {block, 34};
    case GgufType::Q4_0: return {block, 18};
    case GgufType::Q4_1: return {block, 20};
    case GgufType::Q5_0: return {block, 22};
    case GgufType::Q5_1: return {block, 24};
  }
  throw Failure{Errc::Unsupported, "has elements of " + name(type) + "; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are read"};
}

void dequantize(GgufType type, std::span<const std::byte> bytes, std::span<float> out) {
  const auto [elements, block_bytes] = block_of(type);
  if (out.size() % elements != 0 || bytes.size() != out.size() / elements * block_bytes)
    throw Failure{Errc::InvalidArgument, "dequantize: " + std::to_string(bytes.size()) + " bytes of " + name(type) + " are not " + std::to_string(out.size()) + " elements"};
  if (out.empty()) return;
  if (type == GgufType::F32) {
    std::memcpy(out.data(), bytes.data(), bytes.size());
  } else if (type == GgufType::F16) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = half(bytes.data() + 2 * i);
  } else if (type == GgufType::BF16) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(half_bits(bytes.data() + 2 * i)) << 16);
  } else {
    for (std::size_t i = 0; i < out.size() / elements; ++i) one_block(type, bytes.data() + i * block_bytes, out.data() + i * elements);
  }
}

}  // namespace troupe

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "../../tools/troupe/elements.hpp"

namespace troupe::tools {
namespace {

double decode_one(SafetensorsDtype dtype, std::uint16_t bits) {
  std::vector<double> numbers;
  decode(dtype, std::as_bytes(std::span{&bits, 1}), numbers);
  return numbers.at(0);
}
std::uint16_t encode_one(SafetensorsDtype dtype, double number) {
  std::uint16_t bits = 0;
  encode(dtype, std::span{&number, 1}, std::as_writable_bytes(std::span{&bits, 1}));
  return bits;
}

class Halves : public testing::TestWithParam<SafetensorsDtype> {};
INSTANTIATE_TEST_SUITE_P(Types, Halves, testing::Values(SafetensorsDtype::F16, SafetensorsDtype::BF16));

TEST_P(Halves, GiveBackEveryValue) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto number = decode_one(GetParam(), static_cast<std::uint16_t>(bits));
    if (std::isnan(number)) {
      EXPECT_TRUE(std::isnan(decode_one(GetParam(), encode_one(GetParam(), number))));
    } else {
      ASSERT_EQ(encode_one(GetParam(), number), bits) << number;
    }
  }
}

// Between two neighbours: nearest, and to the even one from the middle; all of these are floats.
TEST_P(Halves, RoundToNearestTiesToEven) {
  const std::uint32_t infinity = GetParam() == SafetensorsDtype::F16 ? 0x7C00 : 0x7F80;
  for (std::uint32_t bits = 0; bits + 1 < infinity; ++bits) {
    const auto low = decode_one(GetParam(), static_cast<std::uint16_t>(bits)), high = decode_one(GetParam(), static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    if (static_cast<double>(middle) != (low + high) / 2) continue;
    ASSERT_EQ(encode_one(GetParam(), middle), bits + (bits & 1)) << low;
    if (bits > 2) {
      ASSERT_EQ(encode_one(GetParam(), std::nextafterf(middle, 0)), bits) << low;
      ASSERT_EQ(encode_one(GetParam(), std::nextafterf(middle, INFINITY)), bits + 1) << low;
    }
    ASSERT_EQ(encode_one(GetParam(), -static_cast<double>(middle)), 0x8000 + bits + (bits & 1));
  }
}

TEST_P(Halves, OverflowToInfinity) {
  EXPECT_EQ(decode_one(GetParam(), encode_one(GetParam(), 3.4e38)), GetParam() == SafetensorsDtype::F16 ? INFINITY : decode_one(SafetensorsDtype::BF16, 0x7F80));
  EXPECT_EQ(decode_one(GetParam(), encode_one(GetParam(), -INFINITY)), -INFINITY);
}

TEST(Elements, KnowsEightBitFloats) {
  std::vector<double> numbers;
  const std::uint8_t e4m3[] = {0x00, 0x01, 0x38, 0x7E, 0x7F, 0xB8}, e5m2[] = {0x01, 0x3C, 0x7B, 0x7C, 0x7F};
  decode(SafetensorsDtype::F8_E4M3, std::as_bytes(std::span{e4m3}), numbers);
  EXPECT_EQ(numbers[1], std::ldexp(1, -9));
  EXPECT_EQ(numbers[2], 1);
  EXPECT_EQ(numbers[3], 448);
  EXPECT_TRUE(std::isnan(numbers[4]));
  EXPECT_EQ(numbers[5], -1);
  decode(SafetensorsDtype::F8_E5M2, std::as_bytes(std::span{e5m2}), numbers);
  EXPECT_EQ(numbers[0], std::ldexp(1, -16));
  EXPECT_EQ(numbers[1], 1);
  EXPECT_EQ(numbers[2], 57344);
  EXPECT_EQ(numbers[3], INFINITY);
  EXPECT_TRUE(std::isnan(numbers[4]));
}

}  // namespace
}  // namespace troupe::tools

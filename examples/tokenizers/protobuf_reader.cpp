#include "protobuf_reader.hpp"

#include <cstring>

namespace troupe::detail {

std::optional<std::uint64_t> ProtobufReader::varint() {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < rest_.size() && i < 10; ++i) {
    const auto byte = static_cast<unsigned char>(rest_[i]);
    value |= static_cast<std::uint64_t>(byte & 0x7FU) << (7 * i);
    if (byte < 0x80) {
      rest_.remove_prefix(i + 1);
      return value;
    }
  }
  return std::nullopt;
}

std::optional<ProtobufReader::Field> ProtobufReader::next() {
  if (rest_.empty() || broken_) return std::nullopt;
  const auto tag = varint();
  if (!tag || *tag >> 3 == 0 || *tag >> 3 > 0x1FFFFFFF) return fail();
  Field out;
  out.number = static_cast<std::uint32_t>(*tag >> 3);
  const auto kind = *tag & 7;
  if (kind == 0) {
    const auto value = varint();
    if (!value) return fail();
    out.value = *value;
  } else if (kind == 1 || kind == 5) {
    const std::size_t size = kind == 1 ? 8 : 4;
    if (rest_.size() < size) return fail();
    std::memcpy(&out.value, rest_.data(), size);
    rest_.remove_prefix(size);
  } else if (kind == 2) {
    const auto size = varint();
    if (!size || *size > rest_.size()) return fail();
    out.bytes = rest_.substr(0, static_cast<std::size_t>(*size));
    rest_.remove_prefix(static_cast<std::size_t>(*size));
  } else {
    return fail();
  }
  return out;
}

}  // namespace troupe::detail

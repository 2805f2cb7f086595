#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace troupe::detail {

/// Walks the fields of one protobuf message. A message that is cut off or has an unknown wire type
/// ends the walk with `broken()`.
class ProtobufReader {
 public:
  explicit ProtobufReader(std::string_view bytes) : rest_(bytes) {}

  struct Field {
    std::uint32_t number = 0;
    std::uint64_t value = 0;  ///< varint, or the bits of a fixed one
    std::string_view bytes;   ///< of a string or message
  };
  [[nodiscard]] std::optional<Field> next();
  [[nodiscard]] bool broken() const { return broken_; }

 private:
  std::optional<std::uint64_t> varint();
  std::optional<Field> fail() {
    broken_ = true;
    return std::nullopt;
  }

  std::string_view rest_;
  bool broken_ = false;
};

}  // namespace troupe::detail

#pragma once

#include <troupe/link.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace troupe::detail {

constexpr std::uint32_t frame_magic = 0x4C505254;  // "TRPL" in memory
constexpr std::uint16_t protocol_version = 4;
constexpr std::size_t frame_header_bytes = 12;

/// What comes before every message, little-endian: magic u32, protocol version u16, type u16, length u32.
struct FrameHeader {
  std::uint16_t type = 0;
  std::uint32_t length = 0;  ///< of the message that follows
};

/// Checks everything but the message. Throws Failure{ProtocolError} naming the type and the size.
/// @param bytes exactly `frame_header_bytes`
[[nodiscard]] FrameHeader parse_frame_header(std::string_view bytes, std::size_t limit_bytes);

/// Header and message. Throws Failure{ProtocolError} when it is longer than `limit_bytes`.
[[nodiscard]] std::string encode_frame(const LinkMessage& message, std::size_t limit_bytes);

/// The message of a frame whose header said `type`. Throws Failure{ProtocolError}; allocates no more than a small
/// multiple of `bytes`.
[[nodiscard]] LinkMessage decode_message(std::uint16_t type, std::string_view bytes);

/// Whether it goes from a group to a rank; else the other way. Hello goes both.
[[nodiscard]] bool is_order(const LinkMessage& message) noexcept;

/// A type's name on the wire; "unknown type 99".
[[nodiscard]] std::string type_name(std::uint16_t type);

}  // namespace troupe::detail

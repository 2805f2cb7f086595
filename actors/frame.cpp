#include "frame.hpp"

#include <bit>
#include <cstring>

namespace troupe::detail {

static_assert(std::endian::native == std::endian::little, "frames are little-endian");

namespace {

constexpr std::array<std::string_view, std::variant_size_v<LinkMessage>> names = {
    "Hello",      "RunRank",  "CountForStop", "StopAfter",      "BarrierPassed", "AbortRank", "RankStarted",
    "Reported",   "Progressed", "BarrierReached", "StopCounted", "RankDone",     "RankLost",
    "CheckpointWritten", "SeatOpened", "SeatsKnown"};

template <class T>
T read(std::string_view bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

}  // namespace

std::string type_name(std::uint16_t type) {
  return type < names.size() ? std::string(names[type]) : "unknown type " + std::to_string(type);
}

bool is_order(const LinkMessage& message) noexcept {
  return std::holds_alternative<RunRank>(message) || std::holds_alternative<CountForStop>(message) || std::holds_alternative<StopAfter>(message) ||
         std::holds_alternative<BarrierPassed>(message) || std::holds_alternative<AbortRank>(message) || std::holds_alternative<SeatsKnown>(message);
}

FrameHeader parse_frame_header(std::string_view bytes, std::size_t limit_bytes) {
  if (bytes.size() != frame_header_bytes) throw Failure{Errc::ProtocolError, "a frame was cut short in its header"};
  if (read<std::uint32_t>(bytes, 0) != frame_magic) {
    throw Failure{Errc::ProtocolError, "the peer sent bytes that are no frame of Troupe's"};
  }
  if (const auto version = read<std::uint16_t>(bytes, 4); version != protocol_version) {
    throw Failure{Errc::ProtocolError, "the peer speaks protocol version " + std::to_string(version) + ", this program " +
                                           std::to_string(protocol_version)};
  }
  const FrameHeader header{read<std::uint16_t>(bytes, 6), read<std::uint32_t>(bytes, 8)};
  if (header.type >= names.size()) {
    throw Failure{Errc::ProtocolError, "the peer sent a message of " + type_name(header.type)};
  }
  if (header.length > limit_bytes) {
    throw Failure{Errc::ProtocolError, "the peer announced a " + type_name(header.type) + " of " +
                                           std::to_string(header.length) + " bytes; at most " +
                                           std::to_string(limit_bytes) + " are taken"};
  }
  return header;
}

}  // namespace troupe::detail

namespace troupe {

std::string_view name_of(const LinkMessage& message) noexcept { return detail::names[message.index()]; }

}  // namespace troupe

#pragma once

#include <troupe/cluster_security.hpp>
#include <troupe/errors.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// What goes over a link's connection, inside TLS where there is TLS. A stranger may have written all of it.

namespace troupe::detail {

constexpr std::uint32_t link_magic = 0x4E505254;  // "TRPN" in memory
constexpr std::uint16_t link_version = 1;
constexpr std::size_t link_header_bytes = 16;
/// The longest frame of one that is not authenticated yet, and all that it may send with TLS's own bytes.
constexpr std::size_t hello_frame_bytes = 1024, stranger_bytes = 4096;

/// The link's own types; packets have those below `Greeting`.
enum class LinkType : std::uint16_t {
  Greeting = 0xFF00,   ///< without TLS, dialing side: a nonce
  Challenge = 0xFF01,  ///< without TLS, listening side: a nonce, which a Hello answers
  Hello = 0xFF02,      ///< dialing side: who it is, which link this is, and what it has of it
  Welcome = 0xFF03,    ///< listening side: the same
  Refused = 0xFF04,    ///< listening side: why not
  Beat = 0xFF05,       ///< the number of the last packet that came
  Bye = 0xFF06,        ///< nothing follows; a Beat is the answer
  Closed = 0xFF07,     ///< the peer has closed; what had not come does not come
};

/// Before every message, little-endian: magic u32, version u16, type u16, length u32, number u32 (a packet's low 32 bits; otherwise 0).
struct LinkHeader {
  std::uint16_t type = 0;
  std::uint32_t length = 0, number = 0;
};
/// Throws Failure{ProtocolError}. @param bytes exactly `link_header_bytes`
[[nodiscard]] LinkHeader parse_link_header(std::string_view bytes, std::size_t limit_bytes);
void append_frame(std::string& out, std::uint16_t type, std::uint64_t number, std::string_view message);
[[nodiscard]] std::string link_frame(LinkType type, std::string_view message);

/// Frames out of bytes as they come. It holds no more than what came.
class FrameReader {
 public:
  explicit FrameReader(std::size_t limit_bytes) : limit_(limit_bytes) {}
  void set_limit(std::size_t limit_bytes) { limit_ = limit_bytes; }
  void append(std::string_view bytes);
  struct Frame {
    LinkHeader header;
    std::string_view message;  ///< until the next call
  };
  /// The next whole one. Throws Failure{ProtocolError} as soon as a header is wrong.
  [[nodiscard]] std::optional<Frame> next();
  /// Bytes that wait for the rest of their frame.
  [[nodiscard]] std::size_t waiting() const noexcept { return bytes_.size() - begin_; }

 private:
  std::string bytes_;
  std::size_t begin_ = 0, limit_;
};

using LinkId = std::array<char, 16>;
using Nonce = std::array<char, 32>;
using Mac = std::array<char, 32>;

/// What both sides say. Its `mac` proves the token: HMAC-SHA-256 over the side, both nonces and all else in it; zeros where there is no token.
struct LinkHello {
  ClusterIdentity who;
  LinkId link{};
  bool known = false;           ///< Hello: the link was open before. Welcome: it has finished
  std::uint64_t received = 0;   ///< number of the last packet that came
  Mac mac{};
};
[[nodiscard]] std::string encode(const LinkHello& hello);
/// Throws Failure{ProtocolError}.
[[nodiscard]] LinkHello decode_hello(std::string_view bytes);

enum class Side : char { Dialing = 'd', Listening = 'l' };
/// @param binding nonces of both sides, or TLS's exported secret of this connection
[[nodiscard]] Mac mac_of(const LinkHello& hello, Side side, std::string_view binding, std::string_view token);
/// In constant time.
[[nodiscard]] bool is_right(const LinkHello& hello, Side side, std::string_view binding, std::string_view token);

[[nodiscard]] std::string encode(const Outcome& refusal);
/// Throws Failure{ProtocolError}. Text of a stranger: control characters are replaced.
[[nodiscard]] Outcome decode_refusal(std::string_view bytes);

[[nodiscard]] std::string encode_number(std::uint64_t number);
/// Throws Failure{ProtocolError}.
[[nodiscard]] std::uint64_t decode_number(std::string_view bytes);

/// Throws Failure{Internal} when the system has none.
void fill_random(char* bytes, std::size_t size);

}  // namespace troupe::detail

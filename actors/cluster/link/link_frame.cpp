#include "link_frame.hpp"

#include "certificate.hpp"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace troupe::detail {

static_assert(std::endian::native == std::endian::little, "frames are little-endian");

namespace {

constexpr std::size_t keep_bytes = 256 << 10;  // a longer frame's memory is given back
constexpr std::size_t refusal_text_bytes = 512;

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T read(std::string_view bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

/// Takes values off the front.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T number() {
    const auto part = take(sizeof(T));
    return read<T>(part, 0);
  }
  std::string_view take(std::size_t size) {
    if (size > bytes_.size()) throw Failure{Errc::ProtocolError, "the peer's first message was cut short"};
    const auto part = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return part;
  }
  std::string name() {
    const auto size = number<std::uint8_t>();
    std::string word{take(size)};
    if (!word.empty() && !is_cluster_name(word)) throw Failure{Errc::ProtocolError, "the peer's name has characters that no name has"};
    return word;
  }
  void end() const {
    if (!bytes_.empty()) throw Failure{Errc::ProtocolError, "the peer's first message is too long"};
  }

 private:
  std::string_view bytes_;
};

/// All but the MAC.
std::string encode_said(const LinkHello& hello) {
  std::string out;
  for (const auto* word : {&hello.who.cluster, &hello.who.name}) {
    put(out, static_cast<std::uint8_t>(word->size()));
    out += *word;
  }
  put(out, static_cast<std::uint8_t>(hello.who.role));
  out.append(hello.link.data(), hello.link.size());
  put(out, static_cast<std::uint8_t>(hello.known));
  put(out, hello.received);
  return out;
}

}  // namespace

LinkHeader parse_link_header(std::string_view bytes, std::size_t limit_bytes) {
  if (bytes.size() != link_header_bytes) throw Failure{Errc::ProtocolError, "a frame was cut short in its header"};
  if (read<std::uint32_t>(bytes, 0) != link_magic) throw Failure{Errc::ProtocolError, "the peer sent bytes that are no frame of Troupe's"};
  if (const auto version = read<std::uint16_t>(bytes, 4); version != link_version) {
    throw Failure{Errc::Unsupported, "the peer speaks version " + std::to_string(version) + " of the cluster's protocol, this program " + std::to_string(link_version) +
                                         "; use the same build on all hosts"};
  }
  const LinkHeader header{read<std::uint16_t>(bytes, 6), read<std::uint32_t>(bytes, 8), read<std::uint32_t>(bytes, 12)};
  if (header.type > static_cast<std::uint16_t>(LinkType::Closed)) throw Failure{Errc::ProtocolError, "the peer sent a frame of unknown type " + std::to_string(header.type)};
  const auto limit = header.type < static_cast<std::uint16_t>(LinkType::Greeting) ? limit_bytes : std::min(limit_bytes, hello_frame_bytes);
  if (header.length > limit) {
    throw Failure{Errc::ProtocolError, "the peer announced a frame of " + std::to_string(header.length) + " bytes; at most " + std::to_string(limit) + " are taken"};
  }
  return header;
}

void append_frame(std::string& out, std::uint16_t type, std::uint64_t number, std::string_view message) {
  std::array<char, link_header_bytes> header;
  const auto length = static_cast<std::uint32_t>(message.size()), low = static_cast<std::uint32_t>(number);
  std::memcpy(header.data(), &link_magic, 4);
  std::memcpy(header.data() + 4, &link_version, 2);
  std::memcpy(header.data() + 6, &type, 2);
  std::memcpy(header.data() + 8, &length, 4);
  std::memcpy(header.data() + 12, &low, 4);
  out.append(header.data(), header.size());
  out += message;
}

std::string link_frame(LinkType type, std::string_view message) {
  std::string out;
  append_frame(out, static_cast<std::uint16_t>(type), 0, message);
  return out;
}

void FrameReader::append(std::string_view bytes) {
  if (begin_ == bytes_.size()) {
    begin_ = 0;
    if (bytes_.capacity() > keep_bytes) bytes_ = {};
    bytes_.assign(bytes);
    return;
  }
  if (begin_ > bytes_.size() / 2) {
    bytes_.erase(0, begin_);
    begin_ = 0;
  }
  bytes_ += bytes;
}

std::optional<FrameReader::Frame> FrameReader::next() {
  const std::string_view left{bytes_.data() + begin_, bytes_.size() - begin_};
  if (left.size() < link_header_bytes) return std::nullopt;
  const auto header = parse_link_header(left.substr(0, link_header_bytes), limit_);
  if (left.size() - link_header_bytes < header.length) return std::nullopt;
  begin_ += link_header_bytes + header.length;
  return Frame{header, left.substr(link_header_bytes, header.length)};
}

std::string encode(const LinkHello& hello) {
  auto out = encode_said(hello);
  out.append(hello.mac.data(), hello.mac.size());
  return out;
}

LinkHello decode_hello(std::string_view bytes) {
  Reader reader{bytes};
  LinkHello hello;
  hello.who.cluster = reader.name();
  hello.who.name = reader.name();
  const auto role = reader.number<std::uint8_t>();
  if (role > static_cast<std::uint8_t>(ClusterRole::Operator)) throw Failure{Errc::ProtocolError, "the peer has a role that this program does not know"};
  hello.who.role = static_cast<ClusterRole>(role);
  if (hello.who.name.empty()) throw Failure{Errc::ProtocolError, "the peer gave no name"};
  std::memcpy(hello.link.data(), reader.take(hello.link.size()).data(), hello.link.size());
  hello.known = reader.number<std::uint8_t>() != 0;
  hello.received = reader.number<std::uint64_t>();
  std::memcpy(hello.mac.data(), reader.take(hello.mac.size()).data(), hello.mac.size());
  reader.end();
  return hello;
}

Mac mac_of(const LinkHello& hello, Side side, std::string_view binding, std::string_view token) {
  Mac mac{};
  if (token.empty()) return mac;
  std::string said = "troupe link 1";
  said += static_cast<char>(side);
  put(said, static_cast<std::uint32_t>(binding.size()));
  said += binding;
  said += encode_said(hello);
  unsigned size = 0;
  if (HMAC(EVP_sha256(), token.data(), static_cast<int>(token.size()), reinterpret_cast<const unsigned char*>(said.data()), said.size(),
           reinterpret_cast<unsigned char*>(mac.data()), &size) == nullptr ||
      size != mac.size()) {
    throw Failure{Errc::Internal, "OpenSSL: HMAC: " + openssl_reason()};
  }
  return mac;
}

bool is_right(const LinkHello& hello, Side side, std::string_view binding, std::string_view token) {
  const auto expected = mac_of(hello, side, binding, token);
  return token.empty() || CRYPTO_memcmp(expected.data(), hello.mac.data(), expected.size()) == 0;
}

std::string encode(const Outcome& refusal) {
  std::string out;
  put(out, static_cast<std::uint16_t>(refusal.code()));
  return out + refusal.text().substr(0, refusal_text_bytes);
}

Outcome decode_refusal(std::string_view bytes) {
  Reader reader{bytes};
  const auto code = reader.number<std::uint16_t>();
  if (code == 0 || bytes.size() > 2 + refusal_text_bytes) throw Failure{Errc::ProtocolError, "the peer refused in a way that no peer does"};
  std::string text{reader.take(bytes.size() - 2)};
  for (auto& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  const auto known = name(static_cast<Errc>(code)) != "Unknown";
  return {known ? static_cast<Errc>(code) : Errc::ProtocolError, std::move(text)};
}

std::string encode_number(std::uint64_t number) {
  std::string out;
  put(out, number);
  return out;
}

std::uint64_t decode_number(std::string_view bytes) {
  if (bytes.size() != sizeof(std::uint64_t)) throw Failure{Errc::ProtocolError, "the peer sent a number of " + std::to_string(bytes.size()) + " bytes"};
  return read<std::uint64_t>(bytes, 0);
}

void fill_random(char* bytes, std::size_t size) {
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes), static_cast<int>(size)) != 1) throw Failure{Errc::Internal, "OpenSSL: no random bytes: " + openssl_reason()};
}

}  // namespace troupe::detail

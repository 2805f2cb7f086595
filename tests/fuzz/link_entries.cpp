#include "cluster/link/link_frame.hpp"
#include "targets.hpp"

#include <algorithm>

namespace troupe::fuzz {

namespace {

using detail::LinkType;

detail::LinkHello some_hello() {
  detail::LinkHello hello;
  hello.who = {"test", ClusterRole::Node, "node-7.rack_2"};
  hello.link.fill('l');
  hello.received = 300;
  hello.mac.fill('m');
  return hello;
}

template <class F>
void tolerant(F&& act) {
  try {
    act();
  } catch (const Failure&) {
  }
}

/// A stranger's message, read as its type says. What is taken must be written again as it was.
void use(const detail::FrameReader::Frame& frame) {
  switch (static_cast<LinkType>(frame.header.type)) {
    case LinkType::Hello:
    case LinkType::Welcome: {
      const auto hello = detail::decode_hello(frame.message);
      auto again = detail::encode(hello);
      const auto flag = again.size() - sizeof(detail::Mac) - sizeof hello.received - 1;  // any byte but 0 is true
      again[flag] = frame.message[flag];
      if (again != frame.message) __builtin_trap();
      if (detail::is_right(hello, detail::Side::Dialing, "binding", "token")) __builtin_trap();
      return;
    }
    case LinkType::Refused: {
      const auto text = detail::decode_refusal(frame.message).text();
      if (std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; })) __builtin_trap();
      return;
    }
    case LinkType::Beat: return (void)detail::decode_number(frame.message);
    default: return;
  }
}

}  // namespace

std::vector<std::string> link_seeds() {
  const auto hello = detail::encode(some_hello());
  std::string packets;
  for (std::uint16_t i = 1; i < 6; ++i) detail::append_frame(packets, i, i, std::string(i * 20U, 'p'));
  return {detail::link_frame(LinkType::Greeting, std::string(32, 'g')) + detail::link_frame(LinkType::Hello, hello),
          detail::link_frame(LinkType::Challenge, std::string(32, 'c')) + detail::link_frame(LinkType::Welcome, hello) + packets,
          detail::link_frame(LinkType::Refused, detail::encode(Outcome{Errc::InvalidConfig, "your token is not this cluster's"})),
          packets + detail::link_frame(LinkType::Beat, detail::encode_number(5)) + detail::link_frame(LinkType::Bye, "")};
}

int link_frames(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  // The first byte says in pieces of which size the rest comes.
  const std::size_t piece = 1U + data[0];
  const std::string bytes{reinterpret_cast<const char*>(data) + 1, size - 1};
  constexpr std::size_t limit = 8192;
  detail::FrameReader reader{limit};
  tolerant([&] {
    for (std::size_t begin = 0; begin < bytes.size(); begin += piece) {
      reader.append(std::string_view{bytes}.substr(begin, piece));
      while (const auto frame = reader.next()) {
        if (frame->message.size() != frame->header.length || frame->message.size() > limit) __builtin_trap();
        tolerant([&] { use(*frame); });
      }
      if (reader.waiting() > detail::link_header_bytes + limit) __builtin_trap();
    }
  });
  tolerant([&] { (void)detail::decode_hello(bytes); });
  tolerant([&] { (void)detail::decode_refusal(bytes); });
  tolerant([&] { (void)detail::decode_number(bytes); });
  return 0;
}

}  // namespace troupe::fuzz

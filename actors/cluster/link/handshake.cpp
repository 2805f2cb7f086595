// The listening side of a connection until its peer is known: nothing that it sends is believed, and little is kept.
#include "listener_core.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace troupe::detail {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr unsigned char tls_handshake_record = 0x16;

}  // namespace

Handshake::Handshake(ListenerCore& listener, asio::ip::tcp::socket socket) : listener_(listener), socket_(std::move(socket)) {}

// A silent connection has a socket and this object, no buffer and no TLS.
void Handshake::start() {
  socket_.async_wait(asio::ip::tcp::socket::wait_read, [self = shared_from_this()](const error_code& error) {
    if (self->is_closed_) return;
    if (error) return self->close();
    self->first_byte();
  });
}

void Handshake::close() {
  if (std::exchange(is_closed_, true)) return;
  error_code ignored;
  socket_.close(ignored);
  if (connection_) connection_->close();
}

void Handshake::first_byte() {
  unsigned char byte = 0;
  const auto size = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return start();  // Asio woke it for an event of a connection before, now closed
  if (size != 1) {
    listener_.count(&SecureListener::Refused::silent);
    return close();
  }
  has_bytes_ = true;
  auto& credentials = listener_.credentials();
  if (credentials.tls && byte != tls_handshake_record) {
    listener_.count(&SecureListener::Refused::no_tls);
    return close();
  }
  try {
    auto tls = credentials.tls ? std::make_unique<TlsEngine>(credentials.tls->get(), true) : nullptr;
    connection_ = std::make_shared<LinkConnection>(std::move(socket_), std::move(tls), true);
    connection_->start(shared_from_this());
  } catch (const Failure&) {
    listener_.count(&SecureListener::Refused::other);
    close();
  }
}

void Handshake::secured() {
  if (!listener_.credentials().tls) return;  // its Greeting comes first: scanners hear nothing
  const auto peer = connection_->tls()->peer();
  const auto& own = listener_.credentials().own();
  if (!peer) return refuse(&SecureListener::Refused::role, Errc::InvalidConfig, "your certificate names no role in a cluster; issue one with troupe certs issue");
  if (peer->cluster != own.cluster) {
    return refuse(&SecureListener::Refused::certificate, Errc::InvalidConfig, "your certificate is of cluster '" + peer->cluster + "', this is '" + own.cluster + "'");
  }
  peer_ = *peer;
  binding_ = connection_->tls()->binding();
}

void Handshake::frame(const FrameReader::Frame& frame) {
  const auto type = static_cast<LinkType>(frame.header.type);
  if (type == LinkType::Greeting && !listener_.credentials().tls && binding_.empty() && frame.message.size() == sizeof(Nonce)) {
    nonce_.resize(sizeof(Nonce));
    fill_random(nonce_.data(), nonce_.size());
    binding_ = nonce_ + std::string(frame.message);
    return connection_->write(link_frame(LinkType::Challenge, nonce_));
  }
  if (type != LinkType::Hello || binding_.empty()) throw Failure{Errc::ProtocolError, "the peer's first frame is none that comes first"};
  take_hello(frame.message);
}

void Handshake::take_hello(std::string_view message) {
  using Refused = SecureListener::Refused;
  const auto hello = decode_hello(message);
  const auto& credentials = listener_.credentials();
  if (credentials.tls && hello.who != peer_) return refuse(&Refused::other, Errc::InvalidConfig, "you say to be another than your certificate does");
  if (!is_right(hello, Side::Dialing, binding_, credentials.token)) {
    return refuse(&Refused::token, Errc::InvalidConfig, "your token is not this cluster's; copy the file 'token' that troupe certs init made");
  }
  const auto& roles = listener_.options().roles;
  if (std::find(roles.begin(), roles.end(), hello.who.role) == roles.end()) {
    return refuse(&Refused::role, Errc::InvalidConfig, std::string("a ") + troupe::name(hello.who.role) + " may not connect to this " + troupe::name(credentials.own().role));
  }
  if (hello.who.cluster != credentials.own().cluster) return refuse(&Refused::other, Errc::InvalidConfig, "this is cluster '" + credentials.own().cluster + "'");
  try {
    listener_.admit(connection_, hello.who, hello, binding_);
    is_decided_ = is_closed_ = true;  // it is the link's from here on
    connection_.reset();
    listener_.accept_next();
  } catch (const Failure& failure) {
    refuse(&Refused::other, failure.code(), failure.what());
  } catch (const std::exception& error) {
    refuse(&Refused::other, Errc::Internal, error.what());
  }
}

void Handshake::refuse(std::uint64_t SecureListener::Refused::*reason, Errc code, const std::string& text) {
  listener_.count(reason);
  is_decided_ = true;
  connection_->write(link_frame(LinkType::Refused, encode(Outcome{code, text})));
  connection_->close_when_written();
}

void Handshake::broke(const Broken& why) {
  using Refused = SecureListener::Refused;
  is_decided_ = true;
  switch (why.tls) {
    case TlsFault::NotTls: return listener_.count(&Refused::no_tls);
    case TlsFault::Version: return listener_.count(&Refused::version);
    case TlsFault::Certificate:
    case TlsFault::Refused: return listener_.count(&Refused::certificate);
    default: return listener_.count(why.code == Errc::Unsupported ? &Refused::version : &Refused::other);
  }
}

}  // namespace troupe::detail

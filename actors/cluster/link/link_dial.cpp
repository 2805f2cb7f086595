#include "link_dial.hpp"

#include <boost/asio/connect.hpp>

#include <utility>

namespace troupe::detail {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

Dial::Dial(asio::io_context& io, HostPort to, ClusterRole wanted, const LinkCredentials& credentials, LinkHello hello, Ends ends)
    : to_(std::move(to)), wanted_(wanted), credentials_(credentials), hello_(std::move(hello)), ends_(std::move(ends)), resolver_(io), socket_(io), deadline_(io) {}

void Dial::start(std::chrono::milliseconds limit) {
  deadline_.expires_after(limit);
  deadline_.async_wait([self = shared_from_this(), limit](const error_code& error) {
    if (!error) self->fail(Errc::DeadlinePassed, "no answer within " + std::to_string(limit.count()) + " ms", false);
  });
  if (const auto address = literal_address(to_.host)) {
    connect({{*address, to_.port}});
  } else {
    resolve();
  }
}

void Dial::cancel() {
  if (std::exchange(is_over_, true)) return;
  resolver_.cancel();
  deadline_.cancel();
  error_code ignored;
  socket_.close(ignored);
  if (connection_) std::exchange(connection_, nullptr)->close();
  ends_ = {};
}

void Dial::resolve() {
  resolver_.async_resolve(to_.host, std::to_string(to_.port), [self = shared_from_this()](const error_code& error, const tcp::resolver::results_type& results) {
    if (self->is_over_) return;
    if (error) return self->fail(Errc::DeadlinePassed, "'" + self->to_.host + "' has no address: " + error.message(), false);
    Endpoints endpoints;
    for (const auto& result : results) {
      if (self->credentials_.may_leave_host || result.endpoint().address().is_loopback()) endpoints.push_back(result.endpoint());
    }
    self->connect(std::move(endpoints));
  });
}

void Dial::connect(Endpoints endpoints) {
  if (endpoints.empty()) return fail(Errc::InvalidConfig, "'" + to_.host + "' is not this host, and without certificates no other is connected to", true);
  const auto kept = std::make_shared<Endpoints>(std::move(endpoints));
  asio::async_connect(socket_, *kept, [self = shared_from_this(), kept](const error_code& error, const tcp::endpoint&) {
    if (self->is_over_) return;
    if (error) return self->fail(Errc::DeadlinePassed, error.message(), false);
    self->connected();
  });
}

void Dial::connected() {
  try {
    auto tls = credentials_.tls ? std::make_unique<TlsEngine>(credentials_.tls->get(), false) : nullptr;
    connection_ = std::make_shared<LinkConnection>(std::move(socket_), std::move(tls), false);
    connection_->start(shared_from_this());
  } catch (const Failure& failure) {
    fail(failure.code(), failure.what(), true);
  }
}

void Dial::secured() {
  if (is_over_) return;
  if (!credentials_.tls) {
    nonce_.resize(sizeof(Nonce));
    fill_random(nonce_.data(), nonce_.size());
    return connection_->write(link_frame(LinkType::Greeting, nonce_));
  }
  const auto peer = connection_->tls()->peer();
  try {
    if (!peer) throw Failure{Errc::InvalidConfig, "its certificate names no role in a cluster"};
    check_peer(*peer);
    binding_ = connection_->tls()->binding();
    peer_ = *peer;
    say_hello();
  } catch (const Failure& failure) {
    fail(failure.code(), failure.what(), true);
  }
}

void Dial::check_peer(const ClusterIdentity& peer) const {
  if (peer.cluster != credentials_.own().cluster) {
    throw Failure{Errc::InvalidConfig, "it belongs to cluster '" + peer.cluster + "', this side to '" + credentials_.own().cluster + "'"};
  }
  if (peer.role != wanted_) {
    throw Failure{Errc::InvalidConfig, "it is " + std::string(troupe::name(peer.role)) + " '" + peer.name + "', no " + troupe::name(wanted_)};
  }
}

void Dial::say_hello() {
  hello_.who = credentials_.own();
  hello_.mac = mac_of(hello_, Side::Dialing, binding_, credentials_.token);
  said_hello_ = true;
  connection_->write(link_frame(LinkType::Hello, encode(hello_)));
}

void Dial::frame(const FrameReader::Frame& frame) {
  if (is_over_) return;
  const auto type = static_cast<LinkType>(frame.header.type);
  if (type == LinkType::Refused) {
    const auto refusal = decode_refusal(frame.message);
    return fail(refusal.code(), "refused: " + refusal.text(), true);
  }
  if (type == LinkType::Challenge && !credentials_.tls && !said_hello_ && frame.message.size() == sizeof(Nonce)) {
    binding_ = std::string(frame.message) + nonce_;
    return say_hello();
  }
  if (type != LinkType::Welcome || !said_hello_) throw Failure{Errc::ProtocolError, "the peer answered with a frame that does not belong here"};
  take_welcome(frame.message);
}

void Dial::take_welcome(std::string_view message) {
  const auto welcome = decode_hello(message);
  if (welcome.link != hello_.link) throw Failure{Errc::ProtocolError, "the peer answered about another link"};
  if (!is_right(welcome, Side::Listening, binding_, credentials_.token)) return fail(Errc::InvalidConfig, "it does not know this cluster's token", true);
  if (credentials_.tls && welcome.who != peer_) return fail(Errc::InvalidConfig, "it says to be another than its certificate does", true);
  try {
    check_peer(welcome.who);
  } catch (const Failure& failure) {
    return fail(failure.code(), failure.what(), true);
  }
  is_over_ = true;
  deadline_.cancel();
  const auto ends = std::exchange(ends_, {});
  ends.made(std::exchange(connection_, nullptr), welcome.who, welcome);
}

void Dial::broke(const Broken& why) {
  connection_.reset();
  const bool is_final = why.tls == TlsFault::Certificate || why.tls == TlsFault::Refused || why.tls == TlsFault::Version || why.tls == TlsFault::NotTls ||
                        why.code == Errc::ProtocolError || why.code == Errc::Unsupported;
  const bool is_config = is_final && why.tls != TlsFault::None;
  fail(is_config ? Errc::InvalidConfig : is_final ? why.code : Errc::DeadlinePassed, why.text, is_final);
}

void Dial::fail(Errc code, const std::string& text, bool is_final) {
  if (is_over_) return;
  const auto keep = shared_from_this();
  const auto failed = ends_.failed;
  // What was refused after TLS is told the peer by an alert or by hanging up.
  if (connection_) std::exchange(connection_, nullptr)->close_when_written();
  cancel();
  failed({code, text}, is_final);
}

}  // namespace troupe::detail

// The listening side: who may come in, and how many at once.
#include "listener_core.hpp"

#include "link_address.hpp"

#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>
#include <utility>

namespace troupe::detail {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using namespace std::chrono_literals;

namespace {

constexpr auto sweep_every = 20ms;
constexpr auto silent_place = 20ms;    // a silent connection keeps its place so long when others wait
constexpr auto decided_place = 100ms;  // one that was refused, so that it reads why

class AcceptedLink final : public LinkCore {
 public:
  AcceptedLink(asio::io_context& io, LinkId id, SecureLinkOptions options, std::weak_ptr<ListenerCore> listener) : LinkCore(io, id, options), listener_(std::move(listener)) {}

 private:
  void lost(const std::string&) override {}
  bool may_reconnect() const override { return false; }
  void ending(bool by_peer) override {
    if (!std::exchange(has_told_, true)) {
      if (const auto listener = listener_.lock()) listener->forget(id(), by_peer, received());
    }
  }

  const std::weak_ptr<ListenerCore> listener_;
  bool has_told_ = false;
};

}  // namespace

ListenerCore::ListenerCore(asio::io_context& io, LinkCredentials credentials, Options options, Accept accept)
    : io_(io), credentials_(std::move(credentials)), options_(std::move(options)), accept_(std::move(accept)), acceptor_(io), sweep_(io) {}

void ListenerCore::listen() {
  const auto to = parse_host_port(options_.listen);
  host_ = to.host;
  const auto fail = [&](const error_code& error) {
    if (error) throw Failure{Errc::StartFailed, "cannot listen on " + options_.listen + ": " + error.message()};
  };
  error_code error;
  tcp::endpoint endpoint;
  if (const auto address = literal_address(to.host)) {
    endpoint = {*address, to.port};
  } else {
    tcp::resolver resolver{io_};
    const auto found = resolver.resolve(to.host, std::to_string(to.port), tcp::resolver::passive, error);
    fail(error);
    const auto usable = std::find_if(found.begin(), found.end(), [&](const auto& one) { return credentials_.may_leave_host || one.endpoint().address().is_loopback(); });
    if (usable == found.end()) throw Failure{Errc::InvalidConfig, "'" + to.host + "' is not this host's loopback, and without certificates nothing else is listened on"};
    endpoint = usable->endpoint();
  }
  acceptor_.open(endpoint.protocol(), error);
  fail(error);
  acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (endpoint.address().is_v6() && endpoint.address().is_unspecified()) acceptor_.set_option(asio::ip::v6_only(false), error);
  acceptor_.bind(endpoint, error);
  fail(error);
  acceptor_.listen(asio::socket_base::max_listen_connections, error);
  fail(error);
  port_ = acceptor_.local_endpoint().port();
}

void ListenerCore::start() {
  if (is_insecure(credentials_, host_)) {
    warn_insecure();
    sweep_later();
  }
  accept_next();
}

SecureListener::Refused ListenerCore::refused() const {
  const std::lock_guard lock{mutex_};
  return refused_;
}

void ListenerCore::count(std::uint64_t Refused::*reason) {
  const std::lock_guard lock{mutex_};
  ++(refused_.*reason);
}

void ListenerCore::close() {
  asio::post(io_, [self = shared_from_this()] {
    if (std::exchange(self->is_closed_, true)) return;
    error_code ignored;
    self->acceptor_.close(ignored);
    self->sweep_.cancel();
    for (const auto& handshake : std::exchange(self->pending_, {})) handshake->close();
    self->links_.clear();
    self->accept_ = {};
  });
}

void ListenerCore::accept_next() {
  if (is_closed_ || is_accepting_) return;
  if (pending_.size() >= static_cast<std::size_t>(options_.max_handshakes) && !make_room()) return sweep_later();
  is_accepting_ = true;
  acceptor_.async_accept([self = shared_from_this()](const error_code& error, tcp::socket socket) {
    self->is_accepting_ = false;
    if (self->is_closed_) return;
    if (error) return self->sweep_later();  // no descriptor is free: the next try is a little later
    self->begin(std::move(socket));
    self->accept_next();
  });
}

void ListenerCore::begin(tcp::socket socket) {
  const auto handshake = std::make_shared<Handshake>(*this, std::move(socket));
  pending_.push_back(handshake);
  handshake->start();
  sweep_later();
}

// Who waits longest for nothing gives way: first who has its answer, then who is silent, then who is slow.
bool ListenerCore::make_room() {
  pending_.remove_if([](const auto& one) { return one->is_closed(); });
  if (pending_.size() < static_cast<std::size_t>(options_.max_handshakes)) return true;
  const auto now = Clock::now();
  const auto slow_place = options_.link.handshake_timeout / 4;
  const auto older = [&](const auto& one, auto place) { return now - one->began() >= place; };
  auto found = std::find_if(pending_.begin(), pending_.end(), [&](const auto& one) { return one->is_decided() && older(one, decided_place); });
  if (found == pending_.end()) found = std::find_if(pending_.begin(), pending_.end(), [&](const auto& one) { return one->is_silent() && older(one, silent_place); });
  if (found == pending_.end()) found = std::find_if(pending_.begin(), pending_.end(), [&](const auto& one) { return older(one, slow_place); });
  if (found == pending_.end()) return false;
  if (!(*found)->is_decided()) count((*found)->is_silent() ? &Refused::silent : &Refused::other);
  (*found)->close();
  pending_.erase(found);
  return true;
}

void ListenerCore::sweep_later() {
  if (is_closed_ || std::exchange(is_sweeping_, true)) return;
  sweep_.expires_after(sweep_every);
  sweep_.async_wait([self = shared_from_this()](const error_code& error) {
    self->is_sweeping_ = false;
    if (!error) self->sweep();
  });
}

void ListenerCore::sweep() {
  const auto now = Clock::now();
  for (auto one = pending_.begin(); one != pending_.end();) {
    const bool is_late = !(*one)->is_closed() && now - (*one)->began() > options_.link.handshake_timeout;
    if (is_late) {
      if (!(*one)->is_decided()) count((*one)->is_silent() ? &Refused::silent : &Refused::other);
      (*one)->close();
    }
    one = is_late || (*one)->is_closed() ? pending_.erase(one) : std::next(one);
  }
  std::erase_if(finished_, [&](const auto& one) { return now - one.second.at > options_.link.silence; });
  accept_next();
  const bool warns = is_insecure(credentials_, host_);
  if (warns) warn_insecure();
  if (!pending_.empty() || !finished_.empty() || !is_accepting_ || warns) sweep_later();
}

void ListenerCore::forget(const LinkId& id, bool finished, std::uint64_t received) {
  links_.erase(id);
  if (!finished || is_closed_) return;
  finished_[id] = {received, Clock::now()};
  sweep_later();
}

std::shared_ptr<LinkCore> ListenerCore::link_of(const ClusterIdentity& peer, const LinkHello& hello) {
  if (const auto found = links_.find(hello.link); found != links_.end()) {
    if (const auto link = found->second.lock(); link && !link->has_ended()) {
      if (link->peer() != peer) throw Failure{Errc::InvalidConfig, "that link is another's"};
      return link;
    }
  }
  if (hello.known) throw Failure{Errc::DeadlinePassed, "this link is not known here any more: it was silent for too long, or this side was started again"};
  const auto link = std::make_shared<AcceptedLink>(io_, hello.link, options_.link, weak_from_this());
  link->set_handlers(accept_(peer, link));
  links_[hello.link] = link;
  return link;
}

void ListenerCore::admit(const std::shared_ptr<LinkConnection>& connection, const ClusterIdentity& peer, const LinkHello& hello, std::string_view binding) {
  if (is_closed_) throw Failure{Errc::Cancelled, "this side is closing"};
  LinkHello welcome;
  welcome.who = credentials_.own();
  welcome.link = hello.link;
  const auto answer = [&] {
    welcome.mac = mac_of(welcome, Side::Listening, binding, credentials_.token);
    connection->write(link_frame(LinkType::Welcome, encode(welcome)));
  };
  if (const auto found = finished_.find(hello.link); found != finished_.end()) {
    welcome.known = true;
    welcome.received = found->second.received;
    answer();
    return connection->close_when_written();
  }
  const auto link = link_of(peer, hello);
  welcome.received = link->received();
  answer();
  try {
    link->attach(connection, peer, hello.received);
  } catch (const Failure& failure) {
    link->end({failure.code(), failure.what()});
    connection->close();
  }
}

std::shared_ptr<SecureListener> SecureListener::open(asio::io_context& io, ClusterRole role, const ClusterSecurity& security, Options options, Accept accept) {
  auto credentials = credentials_of(security, role, parse_host_port(options.listen).host);
  const auto listener = std::make_shared<ListenerCore>(io, std::move(credentials), std::move(options), std::move(accept));
  listener->listen();
  asio::post(io, [listener] { listener->start(); });
  return listener;
}

}  // namespace troupe::detail

// The dialing side of a link.
#include "cluster/secure_link.hpp"

#include "link_core.hpp"
#include "link_dial.hpp"

#include <boost/asio/post.hpp>

#include <algorithm>
#include <random>
#include <utility>

namespace troupe::detail {

namespace {

using namespace std::chrono_literals;

class DialedLink final : public LinkCore {
 public:
  DialedLink(boost::asio::io_context& io, LinkId id, SecureLinkOptions options, const std::string& host_port, ClusterRole wanted, LinkCredentials credentials)
      : LinkCore(io, id, options), to_(parse_host_port(host_port)), host_port_(host_port), wanted_(wanted), credentials_(std::move(credentials)), retry_(io), random_(std::random_device{}()) {}

  void start() {
    if (has_ended()) return;
    began_ = Clock::now();
    start_timer();
    dial();
  }

 private:
  std::shared_ptr<DialedLink> self() { return std::static_pointer_cast<DialedLink>(shared_from_this()); }

  void dial() {
    if (has_ended()) return;
    if (is_insecure(credentials_, to_.host)) warn_insecure();
    LinkHello hello;
    hello.link = id();
    hello.known = is_open();
    hello.received = received();
    dial_ = std::make_shared<Dial>(io_, to_, wanted_, credentials_, hello,
                                   Dial::Ends{[this](auto connection, const auto& peer, const auto& welcome) { made(std::move(connection), peer, welcome); },
                                              [this](const Outcome& why, bool is_final) { failed(why, is_final); }});
    dial_->start(options_.connect_timeout);
  }

  void made(std::shared_ptr<LinkConnection> connection, const ClusterIdentity& peer, const LinkHello& welcome) {
    dial_.reset();
    tries_ = 0;
    try {
      if (welcome.known) {
        connection->close();
        return finished_by_peer(welcome.received);
      }
      attach(std::move(connection), peer, welcome.received);
    } catch (const Failure& failure) {
      end({failure.code(), peer_text() + ": " + failure.what()});
    }
  }

  void failed(const Outcome& why, bool is_final) {
    dial_.reset();
    if (has_ended()) return;
    const auto text = host_port_ + ": " + why.text();
    if (is_final) return end({why.code(), text});
    last_trouble_ = text;
    if (!is_open() && Clock::now() - began_ >= options_.silence) return end({Errc::DeadlinePassed, "cannot reach " + text});
    // 10 ms doubled up to 320, less up to half of it, so that many who lost the same peer do not come back together.
    const auto longest = 10ms * (1 << std::min(tries_++, 5));
    retry_.expires_after(std::chrono::milliseconds{std::uniform_int_distribution<std::int64_t>{longest.count() / 2, longest.count()}(random_)});
    retry_.async_wait([link = self()](const boost::system::error_code& error) {
      if (!error) link->dial();
    });
  }

  void lost(const std::string&) override { dial(); }
  bool may_reconnect() const override { return true; }
  void ending(bool) override {
    retry_.cancel();
    if (dial_) std::exchange(dial_, nullptr)->cancel();
  }

  const HostPort to_;
  const std::string host_port_;
  const ClusterRole wanted_;
  const LinkCredentials credentials_;
  boost::asio::steady_timer retry_;
  std::shared_ptr<Dial> dial_;
  Clock::time_point began_{};
  int tries_ = 0;
  std::minstd_rand random_;
};

}  // namespace

std::shared_ptr<SecureLink> SecureLink::connect(boost::asio::io_context& io, const std::string& host_port, ClusterRole role, ClusterRole wanted,
                                                const ClusterSecurity& security, SecureLinkOptions options, Handlers handlers) {
  auto credentials = credentials_of(security, role, parse_host_port(host_port).host);
  LinkId id;
  fill_random(id.data(), id.size());
  const auto link = std::make_shared<DialedLink>(io, id, options, host_port, wanted, std::move(credentials));
  link->set_handlers(std::move(handlers));
  boost::asio::post(io, [link] { link->start(); });
  return link;
}

}  // namespace troupe::detail

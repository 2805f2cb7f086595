#pragma once

#include "link_connection.hpp"
#include "link_core.hpp"
#include "link_credentials.hpp"
#include "cluster/secure_link.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace troupe::detail {

class ListenerCore;

/// One connection until it is authenticated, or refused and hung up. All on the io thread.
class Handshake : public ConnectionUser, public std::enable_shared_from_this<Handshake> {
 public:
  using Clock = std::chrono::steady_clock;

  /// @param listener outlives what it does: closes it before its own end
  Handshake(ListenerCore& listener, boost::asio::ip::tcp::socket socket);
  void start();
  /// At once, without an answer.
  void close();
  [[nodiscard]] Clock::time_point began() const noexcept { return began_; }
  /// Not a byte has come.
  [[nodiscard]] bool is_silent() const noexcept { return !has_bytes_; }
  /// It has its answer; only the peer's hanging up is waited for.
  [[nodiscard]] bool is_decided() const noexcept { return is_decided_; }
  [[nodiscard]] bool is_closed() const noexcept { return is_closed_ || (connection_ && connection_->is_closed()); }

  void secured() override;
  void frame(const FrameReader::Frame& frame) override;
  void drained() override {}
  void broke(const Broken& why) override;

 private:
  void first_byte();
  void take_hello(std::string_view message);
  void refuse(std::uint64_t SecureListener::Refused::*reason, Errc code, const std::string& text);

  ListenerCore& listener_;
  boost::asio::ip::tcp::socket socket_;
  std::shared_ptr<LinkConnection> connection_;
  const Clock::time_point began_ = Clock::now();
  ClusterIdentity peer_;
  std::string nonce_, binding_;
  bool has_bytes_ = false, is_decided_ = false, is_closed_ = false;
};

class ListenerCore final : public SecureListener, public std::enable_shared_from_this<ListenerCore> {
 public:
  using Clock = std::chrono::steady_clock;

  ListenerCore(boost::asio::io_context& io, LinkCredentials credentials, Options options, Accept accept);
  /// Throws Failure{StartFailed}.
  void listen();
  void start();

  [[nodiscard]] std::uint16_t port() const noexcept override { return port_; }
  [[nodiscard]] Refused refused() const override;
  void close() override;

  // The io thread's.
  [[nodiscard]] LinkCredentials& credentials() noexcept { return credentials_; }
  [[nodiscard]] const Options& options() const noexcept { return options_; }
  void count(std::uint64_t Refused::*reason);
  /// Its Hello was right: a new link, or another connection of one. Throws Failure to refuse.
  void admit(const std::shared_ptr<LinkConnection>& connection, const ClusterIdentity& peer, const LinkHello& hello, std::string_view binding);
  /// Accepts again when a place has become free.
  void accept_next();
  /// A link has ended; `finished`: its peer may ask again whether all had come.
  void forget(const LinkId& id, bool finished, std::uint64_t received);

 private:
  void begin(boost::asio::ip::tcp::socket socket);
  [[nodiscard]] bool make_room();
  void sweep_later();
  void sweep();
  [[nodiscard]] std::shared_ptr<LinkCore> link_of(const ClusterIdentity& peer, const LinkHello& hello);

  struct Finished {
    std::uint64_t received = 0;
    Clock::time_point at{};
  };

  boost::asio::io_context& io_;
  LinkCredentials credentials_;
  const Options options_;
  std::string host_;
  Accept accept_;
  boost::asio::ip::tcp::acceptor acceptor_;
  boost::asio::steady_timer sweep_;
  std::uint16_t port_ = 0;
  std::list<std::shared_ptr<Handshake>> pending_;  // oldest first
  std::map<LinkId, std::weak_ptr<LinkCore>> links_;
  std::map<LinkId, Finished> finished_;
  bool is_accepting_ = false, is_sweeping_ = false, is_closed_ = false;
  mutable std::mutex mutex_;
  Refused refused_;
};

}  // namespace troupe::detail

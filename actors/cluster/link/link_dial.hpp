#pragma once

#include "link_address.hpp"
#include "link_connection.hpp"
#include "link_credentials.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace troupe::detail {

/// One try of the dialing side: resolve, connect, TLS, Hello, Welcome. All on the io thread.
class Dial : public ConnectionUser, public std::enable_shared_from_this<Dial> {
 public:
  /// What it came to, once, unless it was cancelled.
  struct Ends {
    std::function<void(std::shared_ptr<LinkConnection>, const ClusterIdentity& peer, const LinkHello& welcome)> made;
    /// @param is_final another try would end the same way
    std::function<void(const Outcome&, bool is_final)> failed;
  };

  Dial(boost::asio::io_context& io, HostPort to, ClusterRole wanted, const LinkCredentials& credentials, LinkHello hello, Ends ends);
  void start(std::chrono::milliseconds limit);
  void cancel();

  void secured() override;
  void frame(const FrameReader::Frame& frame) override;
  void drained() override {}
  void broke(const Broken& why) override;

 private:
  using Endpoints = std::vector<boost::asio::ip::tcp::endpoint>;
  void resolve();
  void connect(Endpoints endpoints);
  void connected();
  void say_hello();
  void take_welcome(std::string_view message);
  void check_peer(const ClusterIdentity& peer) const;
  void fail(Errc code, const std::string& text, bool is_final);

  const HostPort to_;
  const ClusterRole wanted_;
  const LinkCredentials& credentials_;
  LinkHello hello_;
  Ends ends_;
  boost::asio::ip::tcp::resolver resolver_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer deadline_;
  std::shared_ptr<LinkConnection> connection_;
  ClusterIdentity peer_;
  std::string nonce_, binding_;
  bool said_hello_ = false, is_over_ = false;
};

}  // namespace troupe::detail

#pragma once

#include "io_thread.hpp"

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace troupe::testing {

/// A network between two ends on this host: it cuts connections after so many bytes, falls silent, is slow.
class TcpProxy {
 public:
  using tcp = boost::asio::ip::tcp;
  static constexpr std::size_t never = std::numeric_limits<std::size_t>::max();

  /// @param cut_after of the connection's number, from 0: bytes of both directions that it lets through
  TcpProxy(std::uint16_t to, std::function<std::size_t(int)> cut_after) : to_(boost::asio::ip::address_v4::loopback(), to), cut_after_(std::move(cut_after)) {
    accept();
  }
  ~TcpProxy() { io_.stop(); }
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;
  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port()); }
  [[nodiscard]] int num_connections() const { return num_connections_; }
  /// Bytes in both directions of all connections.
  [[nodiscard]] std::size_t num_bytes() const { return num_bytes_; }

  std::atomic<int> stalled_before{0};  ///< connections with a lower number let nothing through, and stay
  std::atomic<int> delay_ms{0};

 private:
  struct Pair {
    Pair(boost::asio::io_context& io, int of_number, std::size_t of_left) : near(io), far(io), number(of_number), left(of_left) {}
    tcp::socket near, far;
    int number;
    std::size_t left;
    std::array<std::array<char, 4096>, 2> bytes{};
  };
  using Shared = std::shared_ptr<Pair>;

  void accept() {
    acceptor_.async_accept([this](const boost::system::error_code& error, tcp::socket socket) {
      if (error) return;
      const int number = num_connections_++;
      const auto pair = std::make_shared<Pair>(io_.io(), number, cut_after_(number));
      pair->near = std::move(socket);
      boost::system::error_code failed;
      pair->far.connect(to_, failed);
      if (failed || pair->left == 0) {
        cut(pair);
      } else {
        pair->near.set_option(tcp::no_delay(true));
        pair->far.set_option(tcp::no_delay(true));
        pass(pair, 0);
        pass(pair, 1);
      }
      accept();
    });
  }
  static void cut(const Shared& pair) {
    boost::system::error_code ignored;
    pair->near.close(ignored);
    pair->far.close(ignored);
  }
  void pass(const Shared& pair, int way) {
    auto& from = way == 0 ? pair->near : pair->far;
    from.async_read_some(boost::asio::buffer(pair->bytes[static_cast<std::size_t>(way)]), [this, pair, way](const boost::system::error_code& error, std::size_t size) {
      if (pair->number < stalled_before) return held_.push_back(pair);
      if (error) return cut(pair);
      const int delay = delay_ms;
      if (delay == 0) return forward(pair, way, size);
      const auto timer = std::make_shared<boost::asio::steady_timer>(io_.io(), std::chrono::milliseconds{delay});
      timer->async_wait([this, pair, way, size, timer](const boost::system::error_code& stopped) {
        if (!stopped) forward(pair, way, size);
      });
    });
  }
  void forward(const Shared& pair, int way, std::size_t size) {
    auto& to = way == 0 ? pair->far : pair->near;
    const auto part = std::min(size, pair->left);
    pair->left -= part;
    num_bytes_ += part;
    boost::asio::async_write(to, boost::asio::buffer(pair->bytes[static_cast<std::size_t>(way)], part), [this, pair, way](const boost::system::error_code& error, std::size_t) {
      if (error || pair->left == 0) return cut(pair);
      pass(pair, way);
    });
  }

  detail::IoThread io_;  // sockets must not outlive it
  const tcp::endpoint to_;
  const std::function<std::size_t(int)> cut_after_;
  std::atomic<int> num_connections_{0};
  std::atomic<std::size_t> num_bytes_{0};
  std::vector<Shared> held_;
  tcp::acceptor acceptor_{io_.io(), tcp::endpoint{boost::asio::ip::address_v4::loopback(), 0}};
};

}  // namespace troupe::testing

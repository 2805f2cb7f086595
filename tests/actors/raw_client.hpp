#pragma once

#include "cluster/link/link_frame.hpp"
#include "cluster/link/tls_engine.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace troupe::testing {

/// A stranger's socket: sends what it likes.
class RawClient {
 public:
  explicit RawClient(std::uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (socket_ < 0 || ::connect(socket_, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) close();
    const int yes = 1;
    if (socket_ >= 0) ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  }
  RawClient(RawClient&& other) noexcept : socket_(std::exchange(other.socket_, -1)) {}
  RawClient(const RawClient&) = delete;
  ~RawClient() { close(); }
  void close() {
    if (socket_ >= 0) ::close(std::exchange(socket_, -1));
  }
  [[nodiscard]] bool is_connected() const { return socket_ >= 0; }
  /// False: the other side has hung up.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto size = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (size < 0 && errno == EINTR) continue;
      if (size <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(size));
    }
    return true;
  }
  /// Some bytes; nothing: the other side hung up; "": not within the time.
  std::optional<std::string> receive(std::chrono::milliseconds limit) {
    pollfd wait{socket_, POLLIN, 0};
    if (::poll(&wait, 1, static_cast<int>(limit.count())) <= 0) return "";
    std::array<char, 4096> bytes;
    const auto size = ::recv(socket_, bytes.data(), bytes.size(), 0);
    if (size <= 0) return std::nullopt;
    return std::string(bytes.data(), static_cast<std::size_t>(size));
  }
  /// All that comes until the other side hangs up; nothing: it does not within the time.
  std::optional<std::string> receive_to_end(std::chrono::milliseconds limit) {
    std::string all;
    const auto end = std::chrono::steady_clock::now() + limit;
    for (auto now = std::chrono::steady_clock::now(); now < end; now = std::chrono::steady_clock::now()) {
      const auto part = receive(std::chrono::duration_cast<std::chrono::milliseconds>(end - now));
      if (!part) return all;
      all += *part;
    }
    return std::nullopt;
  }

 private:
  int socket_;
};

/// A client that speaks TLS, and any certificate's.
class TlsClient {
 public:
  TlsClient(std::uint16_t port, SSL_CTX& context) : raw_(port), engine_(context, false) { engine_.start(); }
  /// False: TLS failed, or the other side hung up.
  bool shake_hands(std::chrono::milliseconds limit = std::chrono::seconds{5}) {
    flush();
    while (!engine_.is_open() && engine_.fault() == detail::TlsFault::None) {
      const auto part = raw_.receive(limit);
      if (!part || part->empty()) return false;
      engine_.receive(*part, text_);
      flush();
    }
    return engine_.is_open();
  }
  bool send(std::string_view text) {
    engine_.send(text);
    return flush();
  }
  /// The next frame; nothing: the other side hung up, or was silent.
  std::optional<std::pair<detail::LinkType, std::string>> frame(std::chrono::milliseconds limit = std::chrono::seconds{5}) {
    for (;;) {
      frames_.append(std::exchange(text_, {}));
      if (const auto next = frames_.next()) return std::pair{static_cast<detail::LinkType>(next->header.type), std::string(next->message)};
      const auto part = raw_.receive(limit);
      if (!part || part->empty()) return std::nullopt;
      engine_.receive(*part, text_);
    }
  }
  [[nodiscard]] detail::TlsEngine& engine() { return engine_; }
  [[nodiscard]] RawClient& raw() { return raw_; }

 private:
  bool flush() { return raw_.send(std::exchange(engine_.output(), {})); }
  RawClient raw_;
  detail::TlsEngine engine_;
  std::string text_;
  detail::FrameReader frames_{1 << 20};
};

}  // namespace troupe::testing

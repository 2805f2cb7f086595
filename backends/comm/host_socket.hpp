#pragma once

#include <sys/socket.h>

#include <string>

namespace troupe::detail {

inline namespace sockets {  // the control plane has an Fd of its own

/// A file descriptor that closes itself.
class Fd {
 public:
  explicit Fd(int fd = -1) noexcept : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd();
  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] int release() noexcept {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

}  // namespace sockets

/// A numeric address of IPv4 or IPv6, with a port.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  /// Throws Failure{InvalidArgument} when `address` is no numeric address.
  SocketAddress(const std::string& address, const std::string& port);
  /// "10.0.0.2:43210", "[fe80::1]:43210". Throws Failure{InvalidArgument}.
  [[nodiscard]] static SocketAddress of_endpoint(const std::string& endpoint);
  [[nodiscard]] const sockaddr* get() const noexcept { return reinterpret_cast<const sockaddr*>(&storage); }
};

/// A socket that listens on an ephemeral port of `address`. Throws Failure{StartFailed}.
[[nodiscard]] Fd listen_on(const std::string& address);
/// "10.0.0.2:43210" of a listening socket on `address`.
[[nodiscard]] std::string endpoint_of(const Fd& listener, const std::string& address);
/// Begins to connect from `address`. -1 when it cannot.
[[nodiscard]] Fd begin_to_connect(const std::string& address, const SocketAddress& to) noexcept;
/// One waiting connection, or -1.
[[nodiscard]] Fd accept_one(const Fd& listener) noexcept;

}  // namespace troupe::detail

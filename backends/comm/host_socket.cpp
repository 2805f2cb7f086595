#include "host_socket.hpp"

#include <troupe/errors.hpp>

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace troupe::detail {

Fd& Fd::operator=(Fd&& other) noexcept {
  if (fd_ >= 0 && this != &other) close(fd_);
  fd_ = other.release();
  return *this;
}

Fd::~Fd() {
  if (fd_ >= 0) close(fd_);
}

SocketAddress::SocketAddress(const std::string& address, const std::string& port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(address.c_str(), port.c_str(), &hints, &found); error != 0 || !found)
    throw Failure{Errc::InvalidArgument, "hosts: '" + address + "' port '" + port + "' is no numeric address (10.0.0.2, fd00::2): " + gai_strerror(error)};
  std::memcpy(&storage, found->ai_addr, found->ai_addrlen);
  length = found->ai_addrlen;
  freeaddrinfo(found);
}

SocketAddress SocketAddress::of_endpoint(const std::string& endpoint) {
  const auto colon = endpoint.rfind(':');
  if (colon == std::string::npos) throw Failure{Errc::InvalidArgument, "hosts: the endpoint '" + endpoint + "' has no port"};
  auto address = endpoint.substr(0, colon);
  if (address.size() > 2 && address.front() == '[' && address.back() == ']') address = address.substr(1, address.size() - 2);
  return {address, endpoint.substr(colon + 1)};
}

namespace {

Fd make_socket(const SocketAddress& address) noexcept {
  Fd fd{socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
  const int one = 1;
  if (fd.get() >= 0) (void)setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

}  // namespace

Fd listen_on(const std::string& address) {
  const SocketAddress at{address, "0"};
  auto fd = make_socket(at);
  constexpr int waiting = 256;
  if (fd.get() < 0 || bind(fd.get(), at.get(), at.length) != 0 || listen(fd.get(), waiting) != 0)
    throw Failure{Errc::StartFailed, "hosts: cannot listen on " + address + ": " + std::strerror(errno) + " (it must be an address of this host)"};
  return fd;
}

std::string endpoint_of(const Fd& listener, const std::string& address) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&storage), &length) != 0)
    throw Failure{Errc::StartFailed, std::string{"hosts: getsockname: "} + std::strerror(errno)};
  const bool six = storage.ss_family == AF_INET6;
  const auto port = ntohs(six ? reinterpret_cast<const sockaddr_in6&>(storage).sin6_port : reinterpret_cast<const sockaddr_in&>(storage).sin_port);
  return (six ? "[" + address + "]" : address) + ":" + std::to_string(port);
}

Fd begin_to_connect(const std::string& address, const SocketAddress& to) noexcept {
  try {
    auto fd = make_socket(to);
    const SocketAddress from{address, "0"};
    const int one = 1;
    if (fd.get() < 0) return fd;
    (void)setsockopt(fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd.get(), from.get(), from.length) != 0) return Fd{};
    if (connect(fd.get(), to.get(), to.length) != 0 && errno != EINPROGRESS) return Fd{};
    return fd;
  } catch (const std::exception&) {
    return Fd{};
  }
}

Fd accept_one(const Fd& listener) noexcept {
  Fd fd{accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)};
  const int one = 1;
  if (fd.get() >= 0) (void)setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

}  // namespace troupe::detail

#include "node_door.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <functional>
#include <utility>

namespace troupe::tools {

namespace {

/// An abstract name: it goes with its socket.
std::pair<sockaddr_un, socklen_t> address_of(const std::string& key) {
  char name[64];
  const int length = std::snprintf(name, sizeof name, "troupe-launch-%u-%zx", getuid(), std::hash<std::string>{}(key));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name, static_cast<std::size_t>(length));
  return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<std::size_t>(length))};
}

bool is_own_user(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == getuid();
}

}  // namespace

NodeDoor::NodeDoor(const std::string& key) {
  const auto [address, size] = address_of(key);
  socket_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket_ < 0) return;
  if (bind(socket_, reinterpret_cast<const sockaddr*>(&address), size) != 0 || listen(socket_, 1024) != 0) {
    close(std::exchange(socket_, -1));
    return;
  }
  thread_ = std::thread{[this] { take(); }};
}

NodeDoor::~NodeDoor() {
  if (thread_.joinable()) {
    shutdown(socket_, SHUT_RDWR);
    thread_.join();
  }
  if (socket_ >= 0) close(socket_);
  for (const int one : waiting_) close(one);
}

void NodeDoor::take() {
  for (;;) {
    const int one = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC);
    if (one < 0) return;
    const std::lock_guard lock{mutex_};
    waiting_.push_back(one);
  }
}

void NodeDoor::tell(int code) {
  const std::lock_guard lock{mutex_};
  const auto byte = static_cast<unsigned char>(code);
  for (const int one : waiting_) (void)!send(one, &byte, 1, MSG_NOSIGNAL);
}

int wait_at_door(const std::string& key, std::chrono::milliseconds limit) {
  const auto [address, size] = address_of(key);
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds{100})) {
    const int one = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (one >= 0 && connect(one, reinterpret_cast<const sockaddr*>(&address), size) == 0 && is_own_user(one)) {
      unsigned char byte = 1;
      (void)!read(one, &byte, 1);
      close(one);
      return byte;
    }
    if (one >= 0) close(one);
    if (std::chrono::steady_clock::now() > deadline) return 0;
  }
}

}  // namespace troupe::tools

#include "descriptor_socket.hpp"

#include <troupe/errors.hpp>

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace troupe::detail {

namespace {

/// A message of one number and one descriptor.
struct Envelope {
  std::uint64_t attempt = 0;
  iovec content{&attempt, sizeof attempt};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
  msghdr header{};

  Envelope() {
    header.msg_iov = &content;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
  }
  Envelope(const Envelope&) = delete;
};

}  // namespace

std::pair<Fd, Fd> make_descriptor_sockets() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw Failure{Errc::StartFailed, std::string{"cannot start a rank's process: socketpair: "} + std::strerror(errno) +
                                         " (see ulimit -n)"};
  }
  return {Fd{ends[0]}, Fd{ends[1]}};
}

bool send_descriptor(int socket, int descriptor, std::uint64_t attempt) noexcept {
  Envelope envelope;
  envelope.attempt = attempt;
  auto* item = CMSG_FIRSTHDR(&envelope.header);
  item->cmsg_level = SOL_SOCKET;
  item->cmsg_type = SCM_RIGHTS;
  item->cmsg_len = CMSG_LEN(sizeof descriptor);
  std::memcpy(CMSG_DATA(item), &descriptor, sizeof descriptor);
  ssize_t sent = -1;
  do {
    sent = sendmsg(socket, &envelope.header, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == sizeof envelope.attempt;
}

Fd receive_descriptor(int socket, std::uint64_t attempt) {
  for (;;) {
    Envelope envelope;
    ssize_t got = -1;
    do {
      got = recvmsg(socket, &envelope.header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    const auto* item = got == sizeof envelope.attempt ? CMSG_FIRSTHDR(&envelope.header) : nullptr;
    if (!item || item->cmsg_type != SCM_RIGHTS || item->cmsg_len != CMSG_LEN(sizeof(int))) {
      throw Failure{Errc::ProtocolError, "the memory of attempt " + std::to_string(attempt) + "'s group did not come" +
                                             (got < 0 ? std::string{": "} + std::strerror(errno) : std::string{})};
    }
    int descriptor = -1;
    std::memcpy(&descriptor, CMSG_DATA(item), sizeof descriptor);
    Fd received{descriptor};
    if (envelope.attempt == attempt) return received;
  }
}

}  // namespace troupe::detail

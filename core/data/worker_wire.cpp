#include "worker_wire.hpp"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>
#include <troupe/errors.hpp>

namespace troupe {

std::string to_hex(const std::string& bytes) {
  constexpr const char* digits = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * bytes.size());
  for (const auto byte : bytes) {
    hex += digits[static_cast<unsigned char>(byte) >> 4];
    hex += digits[static_cast<unsigned char>(byte) & 15];
  }
  return hex;
}

std::optional<std::string> from_hex(const std::string& hex) {
  const auto value = [](char digit) { return digit >= '0' && digit <= '9' ? digit - '0' : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1; };
  if (hex.size() % 2) return std::nullopt;
  std::string bytes;
  bytes.reserve(hex.size() / 2);
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    const int high = value(hex[i]), low = value(hex[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    bytes += static_cast<char>(high * 16 + low);
  }
  return bytes;
}

std::string to_body(const StreamOrder& order) {
  const auto& s = order.share.sharding;
  return nlohmann::json{{"epoch", order.start.epoch}, {"num_batches", order.start.num_batches}, {"first_sample", order.start.first_sample},
                        {"ahead", order.start.ahead}, {"stream", to_hex(order.start.stream)}, {"batch_size", s.batch_size},
                        {"drop_last", s.drop_last}, {"rank", s.rank}, {"world_size", s.world_size}, {"split_batches", s.split_batches},
                        {"round_to", order.share.round_to}, {"worker", order.share.worker}, {"num_workers", order.share.num_workers},
                        {"own_rank", order.own_rank}, {"own_world_size", order.own_world_size}}
      .dump();
}

StreamOrder stream_order(const std::string& body) {
  try {
    const auto json = nlohmann::json::parse(body);
    StreamOrder order;
    order.start = {json.at("epoch"), json.at("num_batches"), json.at("first_sample"), json.at("ahead"), from_hex(json.at("stream")).value()};
    auto& s = order.share.sharding;
    s.batch_size = json.at("batch_size");
    s.drop_last = json.at("drop_last");
    s.rank = json.at("rank");
    s.world_size = json.at("world_size");
    s.split_batches = json.at("split_batches");
    order.share.round_to = json.at("round_to");
    order.share.worker = json.at("worker");
    order.share.num_workers = json.at("num_workers");
    order.own_rank = json.at("own_rank");
    order.own_world_size = json.at("own_world_size");
    return order;
  } catch (const std::exception& error) {
    throw Failure{Errc::ProtocolError, std::string{"DataLoader: a worker was sent an order that it cannot read: "} + error.what()};
  }
}

bool send_packet(int socket, const void* data, std::size_t size, int fd) {
  iovec part{const_cast<void*>(data), size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    auto* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  for (;;) {
    if (::sendmsg(socket, &message, MSG_NOSIGNAL) >= 0) return true;
    if (errno == EPIPE || errno == ECONNRESET) return false;
    if (errno != EINTR) throw Failure{Errc::ProtocolError, "DataLoader: a worker's socket: " + std::generic_category().message(errno)};
  }
}

std::optional<Packet> receive_packet(int socket) {
  Packet packet;
  packet.bytes.resize(sizeof(Reply) + kMostText);
  iovec part{packet.bytes.data(), packet.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = 0;
  do got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got <= 0) return std::nullopt;
  packet.bytes.resize(static_cast<std::size_t>(got));
  if (const auto* header = CMSG_FIRSTHDR(&message); header && header->cmsg_type == SCM_RIGHTS) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    packet.fd = OwnFd{fd};
  }
  return packet;
}

}  // namespace troupe

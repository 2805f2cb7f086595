#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <troupe/data/data_loader.hpp>
#include <vector>

#include "shared_segment.hpp"
#include "stream_reader.hpp"

namespace troupe {

// What a loader and its worker processes say to each other over a socket of packets. Batches themselves lie in segments.

inline constexpr const char* kWorkerVariable = "TROUPE_DATA_WORKER";  // in a worker's environment: its socket
inline constexpr int kWorkerSocket = 3;

enum class OrderKind : std::uint32_t {
  Init,    ///< body: factory, config, batching; brings the page with the generation that counts
  Stream,  ///< body: where a pass over the iterable data set begins, and this worker's share
  Load,    ///< `count` indices lie in the segment; the batch goes there
  Read,    ///< the worker's next batch of the stream
  Forget,  ///< the segment
};
/// A segment is sent along (its descriptor) with the first order that names it, a body always.
struct Order {
  OrderKind kind = OrderKind::Init;
  std::uint32_t has_fd = 0;
  std::uint64_t generation = 0;  ///< of the epoch; an order of an older one than the page says is answered with Skipped
  std::uint64_t place = 0;
  std::uint64_t segment = 0;
  std::uint64_t count = 0;       ///< of indices, or bytes of the body
};

enum class ReplyKind : std::uint32_t { Ready, Loaded, End, Skipped, Error };
struct Reply {
  ReplyKind kind = ReplyKind::Ready;
  std::uint32_t code = 0;        ///< of an Error, whose text follows
  std::uint64_t generation = 0;
  std::uint64_t place = 0;
  std::uint64_t bytes = 0;       ///< of the batch; of Ready: samples in the data set plus 1, 0: unknown
};
inline constexpr std::size_t kMostText = 16 << 10;

/// A pass over a stream, for the body of an order.
struct StreamOrder {
  LoaderPosition start;
  StreamShare share;
  int own_rank = 0, own_world_size = 0;  ///< the data set divides itself, unless 0
};
[[nodiscard]] std::string to_body(const StreamOrder& order);
/// Throws Failure{ProtocolError}.
[[nodiscard]] StreamOrder stream_order(const std::string& body);

/// Bytes as text that JSON can hold, and back; nothing when it is no such text.
[[nodiscard]] std::string to_hex(const std::string& bytes);
[[nodiscard]] std::optional<std::string> from_hex(const std::string& hex);

/// One packet. False when the other side is gone; Failure{ProtocolError} when the system refuses.
bool send_packet(int socket, const void* data, std::size_t size, int fd = -1);
struct Packet {
  std::vector<char> bytes;
  OwnFd fd;
};
[[nodiscard]] std::optional<Packet> receive_packet(int socket);

}  // namespace troupe

#pragma once

#include <troupe/messages.hpp>

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

namespace boost::asio {
class io_context;
}

namespace troupe {

/// The first frame in both directions: who is there, and that both ends are the same program and start.
struct Hello {
  std::string program;      ///< identity of the executable file; must be equal
  int process = 0;          ///< number of the process in its pool; it may be one rank after another
  std::uint64_t nonce = 0;  ///< drawn by the driver for this process
  bool operator==(const Hello&) const = default;
};

/// Everything that may travel over a link; nothing else is ever decoded. A type's place is its number on the wire:
/// append only.
using LinkMessage = std::variant<Hello, RunRank, CountForStop, StopAfter, BarrierPassed, AbortRank, RankStarted, Reported,
                                 Progressed, BarrierReached, StopCounted, RankDone, RankLost, CheckpointWritten, SeatOpened, SeatsKnown>;

/// "Reported".
[[nodiscard]] std::string_view name_of(const LinkMessage& message) noexcept;

struct LinkLimits {
  std::size_t frame_bytes = 8 << 20;                  ///< longest message
  std::size_t queue_bytes = 64 << 20;                 ///< most that may wait for a peer that does not read
  std::size_t droppable_bytes = 1 << 20;              ///< Progressed is dropped when more than this waits
  std::chrono::milliseconds hello_timeout{60'000};    ///< from start() until the peer's Hello
};

/// One end of a connection between a WorkerGroup's process and a rank's: frames over a connected stream socket.
///
/// Threads: `send`, `finish` and `close` from any; handlers run on the thread that runs the io_context. Errors: a frame
/// that is too long, of unknown type, of the wrong direction or version, or cut short closes the link with
/// ProtocolError; so does a peer that reads nothing while `queue_bytes` wait.
class Link {
 public:
  enum class Side : std::uint8_t { Group, Rank };
  struct Handlers {
    std::function<void()> opened;              ///< the peer's Hello was right
    std::function<void(LinkMessage)> arrived;
    /// Exactly once, the last call. Ok: the peer closed at the end of a frame, or `close` was called.
    std::function<void(const Outcome&)> closed;
  };

  virtual ~Link() = default;
  /// Takes ownership of `socket` and begins with the Hello. The link lives until it is closed.
  [[nodiscard]] static std::shared_ptr<Link> open(boost::asio::io_context& io, int socket, Side side, Hello hello,
                                                  LinkLimits limits, Handlers handlers);
  /// Queues `message`; it goes out once the peer has said Hello. Not ok when it is too long: then nothing is queued.
  /// After the link was closed, messages are dropped.
  [[nodiscard]] virtual Outcome send(const LinkMessage& message) = 0;
  /// Closes when everything queued is sent.
  virtual void finish() = 0;
  virtual void close() = 0;
};

}  // namespace troupe

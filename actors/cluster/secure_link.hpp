#pragma once

#include <troupe/cluster_security.hpp>
#include <troupe/errors.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace boost::asio {
class io_context;
}

namespace troupe::detail {

/// One message: what it is, and its bytes. What they mean is the business of who sends them (node_messages.hpp).
struct Packet {
  std::uint16_t type = 0;  ///< below SecureLink::first_own_type
  std::string bytes;
};

struct SecureLinkOptions {
  std::size_t packet_bytes = 8 << 20;                   ///< longest packet
  std::size_t queue_bytes = 64 << 20;                   ///< most that may wait for a peer that does not read, or is away
  std::chrono::milliseconds handshake_timeout{2'000};   ///< TCP accepted → TLS and Hello done
  std::chrono::milliseconds beat_every{250};            ///< something is sent at least so often, both ways
  /// Heard nothing for so long: the link is closed, whether its connection broke or fell silent. Until then the connecting side makes it again:
  /// at once when it broke, and when it was silent for half the time.
  std::chrono::milliseconds silence{1'500};
  std::chrono::milliseconds connect_timeout{5'000};     ///< of one try
};

/// A connection between two processes of a cluster: TLS 1.3 with certificates of both, the cluster's token, and packets that arrive once and in
/// order. A connection that breaks may be made again within `silence`; packets that were not acknowledged are sent again, and none is
/// delivered twice: a Hello carries the link's id and the number of the last packet that came. The connecting side reconnects, with backoff and jitter.
///
/// Threads: `send`, `finish`, `close`, `local_address` from any; handlers run on the one thread that runs the io_context, which outlives the link.
class SecureLink {
 public:
  static constexpr std::uint16_t first_own_type = 0xFF00;  ///< Hello, beat, acknowledgement

  struct Handlers {
    std::function<void(const ClusterIdentity& peer, const std::string& address)> opened;  ///< once; `address`: the peer's "10.0.0.2"
    std::function<void(Packet)> arrived;
    std::function<void(const std::string& why)> interrupted{};  ///< the connection broke; it may come back
    std::function<void()> resumed{};
    /// Exactly once, the last call. Ok: the peer finished, or `close` was called here. Cancelled: the peer called `close`. DeadlinePassed: it was silent
    /// for too long, or could not be reached for so long. InvalidConfig: certificate, role, cluster or token are wrong, here or there (another try would
    /// end the same way); else what the other side's `Accept` threw. ProtocolError: it sent nonsense, or does not read.
    std::function<void(const Outcome&)> closed;
  };

  virtual ~SecureLink() = default;
  /// Not ok: it is too long (nothing is queued). A peer that lets `queue_bytes` wait closes the link. After the end, or `finish`: ok, and dropped.
  [[nodiscard]] virtual Outcome send(Packet packet) = 0;
  /// Closes when everything is sent and acknowledged. What the peer had not sent by then does not come.
  virtual void finish() = 0;
  virtual void close() = 0;
  /// This end's address of the connection, "10.0.0.1"; empty when there is none.
  [[nodiscard]] virtual std::string local_address() const = 0;

  /// Connects to "HOST:PORT", as `role`, to a peer of role `wanted`. Returns at once. While nobody listens there it tries for `silence`. Throws Failure for
  /// unusable certificates or without TLS beyond loopback unless `security.insecure`.
  [[nodiscard]] static std::shared_ptr<SecureLink> connect(boost::asio::io_context& io, const std::string& host_port, ClusterRole role, ClusterRole wanted,
                                                           const ClusterSecurity& security, SecureLinkOptions options, Handlers handlers);
};

/// Listens for links. At most `max_handshakes` are under way at once (older silent ones give way), each within its time and 4 KiB; connections that do
/// not authenticate are closed without an answer and counted. 10,000 idle connections cost no more than the handshakes allowed.
class SecureListener {
 public:
  struct Options {
    std::string listen = "127.0.0.1:0";  ///< "HOST:PORT"; port 0: any
    int max_handshakes = 64;
    SecureLinkOptions link{};
    std::vector<ClusterRole> roles{ClusterRole::Node, ClusterRole::Operator};  ///< who may connect
  };
  /// What becomes of a new peer: its handlers. Called on the io thread after authentication. Throw Failure to refuse it: the text goes to the peer.
  using Accept = std::function<SecureLink::Handlers(const ClusterIdentity& peer, const std::shared_ptr<SecureLink>& link)>;

  virtual ~SecureListener() = default;
  [[nodiscard]] virtual std::uint16_t port() const noexcept = 0;
  /// Peers turned away since the start, by reason, for status and tests.
  struct Refused {
    std::uint64_t silent = 0, no_tls = 0, certificate = 0, role = 0, token = 0, version = 0, other = 0;
  };
  [[nodiscard]] virtual Refused refused() const = 0;
  /// No new links, and none is taken up again; those that are open stay.
  virtual void close() = 0;

  /// Throws Failure{InvalidConfig}: without TLS beyond loopback unless `security.insecure`; Failure{StartFailed}: the address is in use.
  [[nodiscard]] static std::shared_ptr<SecureListener> open(boost::asio::io_context& io, ClusterRole role, const ClusterSecurity& security, Options options,
                                                            Accept accept);
};

}  // namespace troupe::detail

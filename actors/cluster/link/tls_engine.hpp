#pragma once

#include "certificate.hpp"

#include <troupe/cluster_security.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace troupe::detail {

/// The certificates of one process, as TLS 1.3 wants them. Files that were renewed are read again before the next connection.
/// Threads: one at a time.
class TlsContext {
 public:
  /// Checks first. Throws Failure.
  TlsContext(ClusterSecurity security, ClusterRole role);
  /// For the next connection. Renewed files that cannot be used are said on stderr; the older ones go on.
  [[nodiscard]] SSL_CTX& get();
  [[nodiscard]] const ClusterIdentity& own() const noexcept { return own_; }

 private:
  struct Stamp {
    std::int64_t time_ns = 0;
    std::uint64_t inode = 0, size = 0;
    bool operator==(const Stamp&) const = default;
  };
  [[nodiscard]] std::array<Stamp, 3> stamps() const;
  void load();

  const ClusterSecurity security_;
  const ClusterRole role_;
  std::array<Stamp, 3> stamps_{};
  OpenSsl<SSL_CTX> context_;
  ClusterIdentity own_;
};

/// Why a connection's TLS ended.
enum class TlsFault : std::uint8_t {
  None,
  NotTls,       ///< other bytes
  Version,      ///< older than TLS 1.3
  Certificate,  ///< the peer's is not one of this cluster, or has expired
  Refused,      ///< the peer does not take this side's certificate
  Ended,        ///< the peer said goodbye
  Broken,       ///< anything else
};

/// One connection's TLS without its socket: raw bytes in, text out, and the other way. Threads: one at a time. Errors: `fault()`.
class TlsEngine {
 public:
  TlsEngine(SSL_CTX& context, bool is_listening);
  /// The dialing side's first bytes come into `output`.
  void start();
  /// Takes what came; appends what it said to `text`.
  void receive(std::string_view raw, std::string& text);
  /// Encrypts; only while `is_open()`.
  void send(std::string_view text);
  /// Bytes for the peer: moved out by the caller.
  [[nodiscard]] std::string& output() noexcept { return output_; }

  [[nodiscard]] bool is_open() const noexcept { return is_open_; }
  [[nodiscard]] TlsFault fault() const noexcept { return fault_; }
  [[nodiscard]] const std::string& reason() const noexcept { return reason_; }
  /// Once open: who the peer's certificate says it is; nothing: it names no role.
  [[nodiscard]] std::optional<ClusterIdentity> peer() const;
  /// Once open: a secret that only the two ends of this connection have.
  [[nodiscard]] std::string binding() const;

 private:
  void shake_hands();
  void fail();
  void collect();

  OpenSsl<SSL> ssl_;
  BIO* in_ = nullptr;   // both owned by ssl_
  BIO* out_ = nullptr;
  std::string output_;
  bool is_open_ = false;
  TlsFault fault_ = TlsFault::None;
  std::string reason_;
};

}  // namespace troupe::detail

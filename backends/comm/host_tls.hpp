#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

struct ssl_st;
struct ssl_ctx_st;

namespace troupe::detail {

/// TLS 1.3 by nothing but a key that both ends have (external PSK, RFC 8446 §2.2; TLS_AES_128_GCM_SHA256): without it no handshake.
class TlsKey {
 public:
  /// @param key 32 bytes. Throws Failure{InvalidArgument}.
  explicit TlsKey(std::string key);
  ~TlsKey();
  TlsKey(const TlsKey&) = delete;
  TlsKey& operator=(const TlsKey&) = delete;
  [[nodiscard]] const std::string& key() const noexcept { return key_; }
  [[nodiscard]] ssl_ctx_st* context() const noexcept { return context_; }

 private:
  std::string key_;
  ssl_ctx_st* context_;
};

/// A connection of bytes over TLS on a socket that never blocks. Nothing raises SIGPIPE.
///
/// Threads: one at a time, except `shut` and `wire_bytes`.
class TlsStream {
 public:
  enum class End { Connects, Accepts };
  /// Owns `fd`. `identity`: what a connecting end calls itself; of an accepting one, known after the handshake.
  TlsStream(int fd, std::shared_ptr<const TlsKey> key, End end, std::string identity);
  ~TlsStream();
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;

  /// One step of the handshake; true when it is done. Throws Failure{ProtocolError} when the other end has not the key.
  [[nodiscard]] bool shake();
  /// Takes as much as it can without blocking, and begins to send it; the bytes are no longer needed afterwards.
  [[nodiscard]] std::size_t write(std::span<const std::byte> bytes);
  /// Sends what was taken; true when nothing is left.
  bool flush();
  /// What has come, up to `bytes.size()`.
  [[nodiscard]] std::size_t read(std::span<std::byte> bytes);
  /// The other end has gone, or the connection broke: nothing more will come or go.
  [[nodiscard]] bool closed() const noexcept { return closed_; }
  /// The events of poll(2) that progress waits for.
  [[nodiscard]] short wanted() const noexcept;
  [[nodiscard]] bool waits_to_send() const noexcept { return out_begin_ < out_.size(); }
  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] const std::string& identity() const noexcept { return identity_; }
  /// Ends the connection under whoever waits for it. Any thread.
  void shut() const noexcept;
  /// Bytes sent through the socket. Any thread.
  [[nodiscard]] std::uint64_t wire_bytes() const noexcept { return wire_bytes_.load(std::memory_order_relaxed); }
  /// From here on without encryption, at both ends at once: for measurements of what it costs.
  void go_plain() noexcept { plain_ = true; }

  /// From here on with large buffers, for bytes that come in numbers.
  void widen();

  // What OpenSSL's callbacks need.
  [[nodiscard]] const TlsKey& key() const noexcept { return *key_; }
  void set_identity(std::string identity) { identity_ = std::move(identity); }
  [[nodiscard]] int take_in(char* to, std::size_t most);  ///< bytes, 0 at the end, -1: none yet
  void take_out(const char* from, int bytes);

 private:
  std::size_t read_tls(std::span<std::byte> bytes);

  int fd_;
  std::shared_ptr<const TlsKey> key_;
  std::string identity_;
  ssl_st* ssl_;
  bool closed_ = false, plain_ = false;
  std::vector<char> out_;
  std::size_t out_begin_ = 0;
  std::atomic<std::uint64_t> wire_bytes_{0};
};

}  // namespace troupe::detail

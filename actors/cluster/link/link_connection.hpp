#pragma once

#include "link_frame.hpp"
#include "tls_engine.hpp"

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// Why a connection is over.
struct Broken {
  TlsFault tls = TlsFault::None;  ///< None: the network, or what a frame said
  Errc code = Errc::NetworkFailed;
  std::string text;
};

/// Who uses a connection. All on the io thread.
class ConnectionUser {
 public:
  virtual ~ConnectionUser() = default;
  virtual void secured() = 0;                             ///< TLS is done; without TLS: at once. May throw like `frame`
  virtual void frame(const FrameReader::Frame& frame) = 0;  ///< Throw Failure: the connection is over, with its text
  virtual void drained() = 0;                             ///< all that was written is with the kernel
  virtual void broke(const Broken& why) = 0;              ///< once, the last call
};

/// One TCP connection, with or without TLS, that carries frames. Threads: the io thread only. Its user owns it; it does not own its user.
class LinkConnection : public std::enable_shared_from_this<LinkConnection> {
 public:
  using Clock = std::chrono::steady_clock;

  /// @param tls nullptr: without
  LinkConnection(boost::asio::ip::tcp::socket socket, std::unique_ptr<TlsEngine> tls, bool is_listening);
  void start(const std::shared_ptr<ConnectionUser>& user);
  /// Another user takes over, also from inside `frame`.
  void set_user(const std::shared_ptr<ConnectionUser>& user) { user_ = user; }
  /// The peer is no stranger any more: more and longer frames.
  void trust(std::size_t frame_bytes);

  /// Sends frames, after those before.
  void write(std::string frames);
  [[nodiscard]] bool is_busy() const noexcept { return is_writing_ || !pending_.empty(); }
  /// At once; the user hears nothing more.
  void close();
  /// Once all is written and the peer has hung up, or after a second; the user hears nothing more.
  void close_when_written();

  [[nodiscard]] bool is_closed() const noexcept { return is_closed_; }
  [[nodiscard]] TlsEngine* tls() noexcept { return tls_.get(); }
  [[nodiscard]] Clock::time_point heard() const noexcept { return heard_; }
  /// Bytes that came, TLS's own included.
  [[nodiscard]] std::size_t received_bytes() const noexcept { return received_bytes_; }
  [[nodiscard]] std::string local_address() const;
  [[nodiscard]] std::string peer_address() const;

 private:
  void read();
  void received(std::size_t size);
  void tell_secured();
  void take_frames();
  void pump();
  void hang_up();
  void fail(const Broken& why);  // while the peer may still listen
  void over(const Broken& why);  // it does not

  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer linger_;
  std::unique_ptr<TlsEngine> tls_;
  const bool is_listening_;
  std::weak_ptr<ConnectionUser> user_;
  FrameReader frames_{hello_frame_bytes};
  std::vector<char> in_;
  std::string text_;      // decrypted, on its way to frames_
  std::string pending_;   // frames to be written
  std::size_t sealed_ = 0;  // of pending_, by TLS
  std::string out_;       // being written
  Clock::time_point heard_ = Clock::now();
  std::size_t received_bytes_ = 0;
  bool is_trusted_ = false, is_secured_ = false, is_writing_ = false, is_ending_ = false, is_closed_ = false;
};

}  // namespace troupe::detail

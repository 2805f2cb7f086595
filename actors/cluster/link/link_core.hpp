#pragma once

#include "link_connection.hpp"
#include "link_queue.hpp"
#include "cluster/secure_link.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>

namespace troupe::detail {

/// What both ends of a link have in common: packets in order over connections that come and go, beats, the silence limit. Lives until it is closed.
class LinkCore : public SecureLink, public ConnectionUser, public std::enable_shared_from_this<LinkCore> {
 public:
  using Clock = std::chrono::steady_clock;

  LinkCore(boost::asio::io_context& io, LinkId id, SecureLinkOptions options);

  [[nodiscard]] Outcome send(Packet packet) override;
  void finish() override;
  void close() override;
  [[nodiscard]] std::string local_address() const override;

  // The io thread's.
  void set_handlers(Handlers handlers) { handlers_ = std::move(handlers); }
  /// An authenticated connection, the first or another; the one before is closed. Throws Failure{ProtocolError}: the peer counts otherwise.
  /// @param peer_has number of the last packet that the peer has
  void attach(std::shared_ptr<LinkConnection> connection, const ClusterIdentity& peer, std::uint64_t peer_has);
  /// Ends it, whatever waits.
  void end(const Outcome& outcome);
  [[nodiscard]] bool has_ended() const noexcept { return ended_; }
  [[nodiscard]] bool is_open() const noexcept { return is_open_; }
  [[nodiscard]] std::uint64_t received() const noexcept { return received_; }
  [[nodiscard]] const LinkId& id() const noexcept { return id_; }
  [[nodiscard]] const ClusterIdentity& peer() const noexcept { return peer_; }

  void secured() override {}
  void frame(const FrameReader::Frame& frame) override;
  void drained() override { flush(); }
  void broke(const Broken& why) override;

 protected:
  /// The connection is gone; the dialing side makes another.
  virtual void lost(const std::string& why) = 0;
  /// The dialing side gives a silent connection up.
  [[nodiscard]] virtual bool may_reconnect() const = 0;
  /// Once; before the handler hears it. `by_peer`: the peer said Bye, and may ask for the answer again.
  virtual void ending(bool by_peer) = 0;
  /// How the finishing side learns that all had come, when the answer to its Bye was lost.
  void finished_by_peer(std::uint64_t peer_has);
  /// It also keeps the link alive, until its end.
  void start_timer();
  [[nodiscard]] std::string peer_text() const;

  boost::asio::io_context& io_;
  const SecureLinkOptions options_;
  Clock::time_point heard_ = Clock::now();
  std::string last_trouble_;

 private:
  void wake_writer();
  void flush();
  void tick();
  void on_tick();
  void take_packet(const FrameReader::Frame& frame);
  void acknowledged(std::uint64_t number);
  void say_bye_to(std::uint64_t number);
  void drop_connection(const std::string& why);
  void write(std::string frames);

  const LinkId id_;
  boost::asio::steady_timer timer_;
  Handlers handlers_;
  std::shared_ptr<LinkConnection> connection_;
  ClusterIdentity peer_;
  Clock::time_point due_{}, wrote_{};
  std::uint64_t received_ = 0, answered_ = 0;  // number of the last packet that came, and that the peer knows of
  std::size_t unanswered_bytes_ = 0;
  bool is_open_ = false, bye_written_ = false, is_ticking_ = false;
  // Any thread's.
  mutable std::mutex mutex_;
  LinkQueue queue_;
  std::string local_address_;
  bool is_woken_ = false, finishing_ = false, ended_ = false;  // ended_ is written by the io thread
};

}  // namespace troupe::detail

#include "link_core.hpp"

#include <boost/asio/post.hpp>

#include <algorithm>
#include <utility>

namespace troupe::detail {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t batch_bytes = 256 << 10;  // packets that leave in one write
constexpr std::size_t answer_after_bytes = 64 << 10, answer_after_packets = 256;

std::string seconds_text(std::chrono::milliseconds time) {
  const auto tenths = (time.count() + 50) / 100;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

}  // namespace

LinkCore::LinkCore(asio::io_context& io, LinkId id, SecureLinkOptions options) : io_(io), options_(options), id_(id), timer_(io) {}

Outcome LinkCore::send(Packet packet) {
  if (packet.type >= first_own_type) return {Errc::InvalidArgument, "packets have types below 0xFF00; the others are the link's own"};
  if (packet.bytes.size() > options_.packet_bytes) {
    return {Errc::InvalidArgument, "a packet of " + std::to_string(packet.bytes.size()) + " bytes is too long; at most " + std::to_string(options_.packet_bytes) + " are sent"};
  }
  const std::lock_guard lock{mutex_};
  if (ended_ || finishing_) return {};
  if (queue_.push(packet.type, packet.bytes) > options_.queue_bytes) {
    asio::post(io_, [self = shared_from_this()] {
      self->end({Errc::ProtocolError, self->peer_text() + " does not read: more than " + std::to_string(self->options_.queue_bytes) + " bytes wait for it"});
    });
    return {};
  }
  wake_writer();
  return {};
}

void LinkCore::finish() {
  const std::lock_guard lock{mutex_};
  finishing_ = true;
  wake_writer();
}

void LinkCore::close() {
  asio::post(io_, [self = shared_from_this()] {
    if (self->ended_) return;
    if (self->connection_) self->connection_->write(link_frame(LinkType::Closed, {}));
    self->end({});
  });
}

std::string LinkCore::local_address() const {
  const std::lock_guard lock{mutex_};
  return local_address_;
}

std::string LinkCore::peer_text() const { return peer_.name.empty() ? "the peer" : std::string(troupe::name(peer_.role)) + " '" + peer_.name + "'"; }

void LinkCore::attach(std::shared_ptr<LinkConnection> connection, const ClusterIdentity& peer, std::uint64_t peer_has) {
  if (connection_) {
    std::exchange(connection_, nullptr)->close();
    if (handlers_.interrupted) handlers_.interrupted("the peer has made another connection");
  }
  peer_ = peer;
  {
    const std::lock_guard lock{mutex_};
    queue_.rewind(peer_has);
    local_address_ = connection->local_address();
  }
  bye_written_ = false;
  answered_ = received_;
  unanswered_bytes_ = 0;
  connection_ = std::move(connection);
  connection_->trust(options_.packet_bytes);
  connection_->set_user(shared_from_this());
  heard_ = wrote_ = Clock::now();
  last_trouble_.clear();
  const bool is_first = !std::exchange(is_open_, true);
  start_timer();
  if (is_first) {
    if (handlers_.opened) handlers_.opened(peer_, connection_->peer_address());
  } else if (handlers_.resumed) {
    handlers_.resumed();
  }
  if (!ended_) flush();
}

void LinkCore::end(const Outcome& outcome) {
  Handlers handlers;
  {
    const std::lock_guard lock{mutex_};
    if (std::exchange(ended_, true)) return;
    queue_ = {};
    local_address_.clear();
    handlers = std::move(handlers_);
  }
  timer_.cancel();
  ending(false);
  if (connection_) std::exchange(connection_, nullptr)->close_when_written();
  if (handlers.closed) handlers.closed(outcome);
}

// Under the lock: packets that are queued one by one leave together, in one write.
void LinkCore::wake_writer() {
  if (std::exchange(is_woken_, true)) return;
  asio::post(io_, [self = shared_from_this()] { self->flush(); });
}

void LinkCore::flush() {
  std::string out;
  {
    const std::lock_guard lock{mutex_};
    is_woken_ = false;
    if (ended_ || !connection_ || connection_->is_busy()) return;
    const bool idle = queue_.all_written();
    if (received_ != answered_ && (!idle || unanswered_bytes_ >= answer_after_bytes || received_ - answered_ >= answer_after_packets)) {
      append_frame(out, static_cast<std::uint16_t>(LinkType::Beat), 0, encode_number(received_));
      answered_ = received_;
      unanswered_bytes_ = 0;
    }
    queue_.take(out, batch_bytes);
    if (finishing_ && queue_.all_written() && !std::exchange(bye_written_, true)) append_frame(out, static_cast<std::uint16_t>(LinkType::Bye), 0, {});
  }
  if (!out.empty()) write(std::move(out));
}

void LinkCore::write(std::string frames) {
  wrote_ = Clock::now();
  connection_->write(std::move(frames));
}

void LinkCore::frame(const FrameReader::Frame& frame) {
  if (ended_) return;
  try {
    if (frame.header.type < first_own_type) return take_packet(frame);
    switch (static_cast<LinkType>(frame.header.type)) {
      case LinkType::Beat: return acknowledged(decode_number(frame.message));
      case LinkType::Bye: return say_bye_to(received_);
      case LinkType::Closed: return end({Errc::Cancelled, peer_text() + " closed the link"});
      default: throw Failure{Errc::ProtocolError, "the peer greeted twice"};
    }
  } catch (const Failure& failure) {
    end({failure.code(), peer_text() + ": " + failure.what()});
  }
}

void LinkCore::take_packet(const FrameReader::Frame& frame) {
  const auto ahead = static_cast<std::int32_t>(frame.header.number - static_cast<std::uint32_t>(received_));
  if (ahead <= 0) return;  // it came before
  if (ahead > 1) throw Failure{Errc::ProtocolError, "packets were left out between number " + std::to_string(received_) + " and the next"};
  ++received_;
  unanswered_bytes_ += frame.message.size();
  if (handlers_.arrived) {
    const auto keep = shared_from_this();
    handlers_.arrived(Packet{frame.header.type, std::string(frame.message)});
  }
  if (!ended_ && (unanswered_bytes_ >= answer_after_bytes || received_ - answered_ >= answer_after_packets)) flush();
}

void LinkCore::acknowledged(std::uint64_t number) {
  bool done = false;
  {
    const std::lock_guard lock{mutex_};
    queue_.acknowledge(number);
    done = finishing_ && bye_written_ && queue_.empty();
  }
  if (done) end({});
}

void LinkCore::say_bye_to(std::uint64_t number) {
  write(link_frame(LinkType::Beat, encode_number(number)));
  ending(true);
  end({});
}

void LinkCore::finished_by_peer(std::uint64_t peer_has) {
  std::size_t left = 0;
  bool finishing = false;
  {
    const std::lock_guard lock{mutex_};
    queue_.rewind(peer_has);
    left = queue_.waiting();
    finishing = finishing_;
  }
  if (finishing && left == 0) return end({});
  end({Errc::Cancelled, peer_text() + " has closed the link; " + std::to_string(left) + " packets did not reach it"});
}

void LinkCore::broke(const Broken& why) {
  if (ended_) return;
  if (why.code == Errc::ProtocolError || why.code == Errc::Unsupported) return end({why.code, peer_text() + ": " + why.text});
  drop_connection(why.text);
}

void LinkCore::drop_connection(const std::string& why) {
  if (!connection_) return;
  heard_ = std::max(heard_, connection_->heard());
  std::exchange(connection_, nullptr)->close();
  {
    const std::lock_guard lock{mutex_};
    local_address_.clear();
  }
  last_trouble_ = why;
  const auto keep = shared_from_this();
  if (handlers_.interrupted) handlers_.interrupted(why);
  if (!ended_) lost(why);
}

void LinkCore::start_timer() {
  if (std::exchange(is_ticking_, true)) return;
  due_ = Clock::now();
  tick();
}

void LinkCore::tick() {
  due_ += std::clamp<std::chrono::milliseconds>(std::min(options_.beat_every / 2, options_.silence / 8), 5ms, 1s);
  timer_.expires_at(due_);
  timer_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (!error && !self->ended_) self->on_tick();
  });
}

void LinkCore::on_tick() {
  const auto now = Clock::now();
  // Time in which this process did not run is no silence of the peer's: what it sent may still wait to be read.
  if (const auto late = now - due_; late > options_.beat_every) {
    heard_ = std::min(now, std::max(heard_, connection_ ? connection_->heard() : heard_) + late);
    due_ = now;
  }
  if (!is_open_) return tick();
  const auto heard = std::max(heard_, connection_ ? connection_->heard() : heard_);
  const auto silent = std::chrono::duration_cast<std::chrono::milliseconds>(now - heard);
  if (silent > options_.silence) {
    return end({Errc::DeadlinePassed, peer_text() + " was not heard of for " + seconds_text(silent) + (last_trouble_.empty() ? "" : ": " + last_trouble_)});
  }
  if (connection_ && may_reconnect() && silent > options_.silence / 2) drop_connection("nothing came for " + seconds_text(silent));
  if (!ended_ && connection_ && !connection_->is_busy() && now - wrote_ + options_.beat_every / 4 >= options_.beat_every) {
    answered_ = received_;
    unanswered_bytes_ = 0;
    write(link_frame(LinkType::Beat, encode_number(received_)));
  }
  if (!ended_) tick();
}

}  // namespace troupe::detail

#include "link_connection.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>

#include <utility>

namespace troupe::detail {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr std::size_t seal_bytes = 64 << 10, read_bytes = 32 << 10, stranger_read_bytes = 2 << 10;

std::string address_text(const asio::ip::tcp::endpoint& endpoint) {
  auto address = endpoint.address();
  if (address.is_v6() && address.to_v6().is_v4_mapped()) return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6()).to_string();
  return address.to_string();
}

}  // namespace

LinkConnection::LinkConnection(asio::ip::tcp::socket socket, std::unique_ptr<TlsEngine> tls, bool is_listening)
    : socket_(std::move(socket)), linger_(socket_.get_executor()), tls_(std::move(tls)), is_listening_(is_listening), in_(stranger_read_bytes) {
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
}

void LinkConnection::start(const std::shared_ptr<ConnectionUser>& user) {
  user_ = user;
  if (tls_ && !is_listening_) {
    tls_->start();
    pump();
  }
  if (!tls_) {
    is_secured_ = true;
    tell_secured();
  }
  read();
}

void LinkConnection::trust(std::size_t frame_bytes) {
  is_trusted_ = true;
  frames_.set_limit(frame_bytes);
}

void LinkConnection::write(std::string frames) {
  if (is_closed_ || is_ending_) return;
  if (pending_.empty()) {
    pending_ = std::move(frames);
  } else {
    pending_ += frames;
  }
  pump();
}

void LinkConnection::close() {
  if (std::exchange(is_closed_, true)) return;
  error_code ignored;
  socket_.close(ignored);
  linger_.cancel();
  user_.reset();
}

void LinkConnection::close_when_written() {
  if (is_closed_ || std::exchange(is_ending_, true)) return;
  user_.reset();
  linger_.expires_after(std::chrono::seconds{1});
  linger_.async_wait([self = shared_from_this()](const error_code& error) {
    if (!error) self->close();
  });
  pump();
}

std::string LinkConnection::local_address() const {
  error_code error;
  const auto endpoint = socket_.local_endpoint(error);
  return error ? "" : address_text(endpoint);
}

std::string LinkConnection::peer_address() const {
  error_code error;
  const auto endpoint = socket_.remote_endpoint(error);
  return error ? "" : address_text(endpoint);
}

void LinkConnection::read() {
  if (is_closed_) return;
  if (is_trusted_ && in_.size() < read_bytes) in_.resize(read_bytes);
  socket_.async_read_some(asio::buffer(in_), [self = shared_from_this()](const error_code& error, std::size_t size) {
    if (self->is_closed_) return;
    if (!error) return self->received(size);
    if (self->is_ending_) return self->close();
    self->over({TlsFault::None, Errc::NetworkFailed, error == asio::error::eof ? "the peer hung up" : "the connection broke: " + error.message()});
  });
}

void LinkConnection::received(std::size_t size) {
  heard_ = Clock::now();
  received_bytes_ += size;
  const bool is_stranger = !is_trusted_;
  if (is_stranger && received_bytes_ > stranger_bytes) {
    return is_ending_ ? close() : over({TlsFault::None, Errc::ProtocolError, "the peer sent too much before it said who it is"});
  }
  if (is_ending_) return read();
  const std::string_view raw{in_.data(), size};
  if (!tls_) {
    frames_.append(raw);
  } else {
    text_.clear();
    tls_->receive(raw, text_);
    if (tls_->is_open() && tls_->fault() == TlsFault::None && !std::exchange(is_secured_, true)) tell_secured();
    if (is_closed_) return;
    frames_.append(text_);
    if (text_.capacity() > (256U << 10)) text_ = {};
    pump();
  }
  take_frames();
  if (tls_ && tls_->fault() != TlsFault::None && !is_closed_ && !is_ending_) {
    const auto fault = tls_->fault();
    fail({fault, Errc::NetworkFailed, fault == TlsFault::Ended ? "the peer hung up" : tls_->reason()});
  }
  read();
}

void LinkConnection::tell_secured() {
  try {
    if (const auto user = user_.lock()) user->secured();
  } catch (const Failure& failure) {
    fail({TlsFault::None, failure.code(), failure.what()});
  }
}

void LinkConnection::take_frames() {
  try {
    while (const auto user = user_.lock()) {  // it may be replaced meanwhile
      const auto next = frames_.next();
      if (!next) return;
      user->frame(*next);
    }
  } catch (const Failure& failure) {
    fail({TlsFault::None, failure.code(), failure.what()});
  }
}

void LinkConnection::pump() {
  if (is_writing_ || is_closed_) return;
  if (!tls_) {
    out_.swap(pending_);
    pending_.clear();
  } else {
    if (tls_->is_open() && sealed_ < pending_.size()) {
      const auto part = std::string_view{pending_}.substr(sealed_, seal_bytes);
      tls_->send(part);
      sealed_ += part.size();
      if (sealed_ == pending_.size()) {
        pending_.clear();
        sealed_ = 0;
        if (pending_.capacity() > (1U << 20)) pending_ = {};
      }
    }
    out_.swap(tls_->output());
    tls_->output().clear();
  }
  if (out_.empty()) {
    if (is_ending_) hang_up();
    return;
  }
  is_writing_ = true;
  asio::async_write(socket_, asio::buffer(out_), [self = shared_from_this()](const error_code& error, std::size_t) {
    self->is_writing_ = false;
    self->out_.clear();
    if (error || self->is_closed_) return;  // the reading side has the news, after the last frame that came
    if (self->out_.capacity() > (1U << 20)) self->out_ = {};
    self->pump();
    if (self->is_busy()) return;
    if (const auto user = self->user_.lock()) user->drained();
  });
}

// The last words may still be under way to the peer: closing with unread bytes would take them back.
void LinkConnection::hang_up() {
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
}

// What was written, and an alert that says why, still go out.
void LinkConnection::fail(const Broken& why) {
  if (is_closed_ || is_ending_) return;
  const auto user = user_.lock();
  close_when_written();
  if (user) user->broke(why);
}

void LinkConnection::over(const Broken& why) {
  const auto user = user_.lock();
  close();
  if (user) user->broke(why);
}

}  // namespace troupe::detail

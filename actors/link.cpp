#include "frame.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>

#include <deque>
#include <mutex>
#include <vector>

namespace troupe {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

bool may_send(Link::Side side, const LinkMessage& message) {
  if (std::holds_alternative<Hello>(message)) return false;  // the link's own
  return detail::is_order(message) == (side == Link::Side::Group);
}

std::string mismatch(const Hello& ours, const Hello& theirs) {
  if (theirs.program != ours.program) {
    return "the peer is another program (" + theirs.program + ", this one is " + ours.program + ")";
  }
  if (theirs.process != ours.process) return "the peer is process " + std::to_string(theirs.process);
  return "the peer does not know this start's number";
}

class SocketLink final : public Link, public std::enable_shared_from_this<SocketLink> {
 public:
  SocketLink(asio::io_context& io, int socket, Side side, Hello hello, LinkLimits limits, Handlers handlers)
      : io_(io), socket_(io, asio::local::stream_protocol{}, socket), deadline_(io), side_(side), hello_(std::move(hello)),
        limits_(limits), handlers_(std::move(handlers)) {}

  void start() {
    {
      const std::lock_guard lock{mutex_};
      out_.push_back(detail::encode_frame(hello_, limits_.frame_bytes));
    }
    deadline_.expires_after(limits_.hello_timeout);
    deadline_.async_wait([self = shared_from_this()](const error_code& error) {
      if (error || self->is_open_) return;
      self->end({Errc::DeadlinePassed, "the peer did not say Hello within " +
                                           std::to_string(self->limits_.hello_timeout.count()) + " ms"});
    });
    write_next();
    read_header();
  }

  Outcome send(const LinkMessage& message) override {
    if (!may_send(side_, message)) return {Errc::Internal, std::string(name_of(message)) + " does not go this way"};
    std::string frame;
    try {
      frame = detail::encode_frame(message, limits_.frame_bytes);
    } catch (const Failure& failure) {
      return {failure.code(), failure.what()};
    }
    const std::lock_guard lock{mutex_};
    if (ended_) return {};
    if (std::holds_alternative<Progressed>(message) && waiting_bytes_ > limits_.droppable_bytes) return {};
    if (waiting_bytes_ + frame.size() > limits_.queue_bytes) {
      asio::post(io_, [self = shared_from_this()] {
        self->end({Errc::ProtocolError, "the peer does not read: " + std::to_string(self->limits_.queue_bytes) +
                                            " bytes wait for it"});
      });
      return {};
    }
    waiting_bytes_ += frame.size();
    waiting_.push_back(std::move(frame));
    wake_writer();
    return {};
  }

  void finish() override {
    const std::lock_guard lock{mutex_};
    finishing_ = true;
    wake_writer();
  }

  void close() override {
    asio::post(io_, [self = shared_from_this()] { self->end({}); });
  }

 private:
  // Under the lock: messages that are queued one by one leave together, in one write.
  void wake_writer() {
    if (std::exchange(is_woken_, true)) return;
    asio::post(io_, [self = shared_from_this()] { self->write_next(); });
  }

  void write_next() {
    if (is_writing_) return;
    {
      const std::lock_guard lock{mutex_};
      is_woken_ = false;
      if (ended_) return;
      if (out_.empty() && is_open_) {
        out_.swap(waiting_);
        waiting_bytes_ = 0;
      }
      if (out_.empty() && !(finishing_ && is_open_)) return;
    }
    if (out_.empty()) return end({});
    is_writing_ = true;
    std::vector<asio::const_buffer> buffers;
    for (const auto& frame : out_) buffers.emplace_back(asio::buffer(frame));
    asio::async_write(socket_, buffers, [self = shared_from_this()](const error_code& error, std::size_t) {
      self->is_writing_ = false;
      self->out_.clear();
      // A peer that is gone is news of the reading side, after the last frame that it sent.
      if (!error) self->write_next();
    });
  }

  void read_header() {
    asio::async_read(socket_, asio::buffer(header_), [self = shared_from_this()](const error_code& error, std::size_t size) {
      if (error) return self->read_failed(error, size == 0);
      self->guarded([&] {
        const std::string_view bytes{self->header_.data(), self->header_.size()};
        self->read_message(detail::parse_frame_header(bytes, self->limits_.frame_bytes));
      });
    });
  }

  void read_message(detail::FrameHeader header) {
    in_.resize(header.length);
    asio::async_read(socket_, asio::buffer(in_), [self = shared_from_this(), header](const error_code& error, std::size_t) {
      if (error) return self->read_failed(error, false);
      self->guarded([&] {
        self->take(detail::decode_message(header.type, self->in_));
        if (self->in_.capacity() > (1 << 20)) self->in_ = {};
        if (!self->ended_) self->read_header();
      });
    });
  }

  void take(LinkMessage message) {
    if (auto* theirs = std::get_if<Hello>(&message)) {
      if (is_open_) throw Failure{Errc::ProtocolError, "the peer said Hello twice"};
      if (!(*theirs == hello_)) throw Failure{Errc::ProtocolError, mismatch(hello_, *theirs)};
      is_open_ = true;
      deadline_.cancel();
      if (handlers_.opened) handlers_.opened();
      return write_next();
    }
    if (!is_open_) {
      throw Failure{Errc::ProtocolError, "the peer sent " + std::string(name_of(message)) + " before its Hello"};
    }
    if (may_send(side_, message)) {
      throw Failure{Errc::ProtocolError, "the peer sent " + std::string(name_of(message)) + ", which it only receives"};
    }
    handlers_.arrived(std::move(message));
  }

  template <class Work>
  void guarded(Work work) {
    if (ended_) return;
    try {
      work();
    } catch (const Failure& failure) {
      end({failure.code(), failure.what()});
    }
  }

  void read_failed(const error_code& error, bool between_frames) {
    if (error == asio::error::operation_aborted) return;
    if (between_frames && (error == asio::error::eof || error == asio::error::connection_reset)) return end({});
    end({Errc::ProtocolError, "the link broke inside a frame: " + error.message()});
  }

  void end(Outcome outcome) {
    Handlers handlers;
    {
      const std::lock_guard lock{mutex_};
      if (std::exchange(ended_, true)) return;
      waiting_.clear();
      handlers = std::move(handlers_);
    }
    error_code ignored;
    socket_.close(ignored);
    deadline_.cancel();
    handlers.closed(outcome);
  }

  asio::io_context& io_;
  asio::local::stream_protocol::socket socket_;
  asio::steady_timer deadline_;
  const Side side_;
  const Hello hello_;
  const LinkLimits limits_;
  Handlers handlers_;
  // The io thread's.
  std::array<char, detail::frame_header_bytes> header_{};
  std::string in_;
  std::deque<std::string> out_;  // being written
  bool is_writing_ = false;
  bool is_open_ = false;  // the peer's Hello was right
  // Any thread's.
  std::mutex mutex_;
  std::deque<std::string> waiting_;
  std::size_t waiting_bytes_ = 0;
  bool is_woken_ = false;
  bool finishing_ = false;
  bool ended_ = false;  // written by the io thread
};

}  // namespace

std::shared_ptr<Link> Link::open(asio::io_context& io, int socket, Side side, Hello hello, LinkLimits limits,
                                 Handlers handlers) {
  auto link = std::make_shared<SocketLink>(io, socket, side, std::move(hello), limits, std::move(handlers));
  asio::post(io, [link] { link->start(); });
  return link;
}

}  // namespace troupe

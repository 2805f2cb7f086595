// Stands in for the secure link until that is there.
#include "secure_link.hpp"

#include <boost/asio.hpp>

#include <deque>
#include <mutex>

namespace troupe {
const char* name(ClusterRole role) noexcept { return role == ClusterRole::Head ? "head" : role == ClusterRole::Node ? "node" : "operator"; }
}  // namespace troupe

namespace troupe::detail {
namespace asio = boost::asio;
using asio::ip::tcp;

class PlainLink final : public SecureLink, public std::enable_shared_from_this<PlainLink> {
 public:
  PlainLink(asio::io_context& io, ClusterRole role, std::string own, SecureLinkOptions options)
      : io_(io), socket_(io), timer_(io), role_(role), own_(std::move(own)), options_(options) {}
  Outcome send(Packet packet) override {
    if (packet.bytes.size() > options_.packet_bytes) return {Errc::ProtocolError, "too long"};
    put(packet.type, packet.bytes);
    return {};
  }
  void finish() override {
    asio::post(io_, [self = shared_from_this()] {
      self->finishing_ = true;
      self->put(0xFFFE, "");
      self->pump();
    });
  }
  void close() override {
    asio::post(io_, [self = shared_from_this()] { self->end({}); });
  }
  std::string local_address() const override {
    boost::system::error_code error;
    const auto end = socket_.local_endpoint(error);
    return error ? "" : end.address().to_string();
  }
  void put(std::uint16_t type, const std::string& bytes) {
    std::string frame(6, '\0');
    const auto length = static_cast<std::uint32_t>(bytes.size());
    std::memcpy(frame.data(), &type, 2);
    std::memcpy(frame.data() + 2, &length, 4);
    frame += bytes;
    const std::lock_guard lock{mutex_};
    out_.push_back(std::move(frame));
    asio::post(io_, [self = shared_from_this()] { self->pump(); });
  }
  void begin() {
    socket_.set_option(tcp::no_delay{true});
    ready_ = true;
    heard_ = std::chrono::steady_clock::now();
    out_.push_front(hello());
    pump();
    read();
    tick();
  }
  std::string hello() {
    std::string bytes = std::string(1, static_cast<char>(role_)) + own_;
    std::string frame(6, '\0');
    const std::uint16_t type = 0xFF00;
    const auto length = static_cast<std::uint32_t>(bytes.size());
    std::memcpy(frame.data(), &type, 2);
    std::memcpy(frame.data() + 2, &length, 4);
    return frame + bytes;
  }
  void tick() {
    timer_.expires_after(options_.beat_every);
    timer_.async_wait([self = shared_from_this()](auto error) {
      if (error || self->over_) return;
      if (std::chrono::steady_clock::now() - self->heard_ > self->options_.silence) return self->end({Errc::DeadlinePassed, "silent"});
      self->put(0xFFFF, "");
      self->tick();
    });
  }
  void pump() {
    if (busy_ || !ready_ || over_) return;
    {
      const std::lock_guard lock{mutex_};
      if (out_.empty()) return;
      now_ = std::move(out_.front());
      out_.pop_front();
    }
    busy_ = true;
    asio::async_write(socket_, asio::buffer(now_), [self = shared_from_this()](auto error, auto) {
      self->busy_ = false;
      if (!error) return self->pump();
    });
  }
  void read() {
    asio::async_read(socket_, asio::buffer(head_), [self = shared_from_this()](auto error, auto) {
      if (error) return self->end({Errc::NetworkFailed, "connection broke: " + error.message()});
      std::uint32_t length = 0;
      std::memcpy(&self->type_, self->head_, 2);
      std::memcpy(&length, self->head_ + 2, 4);
      self->in_.resize(length);
      asio::async_read(self->socket_, asio::buffer(self->in_), [self](auto failed, auto) {
        if (failed) return self->end({Errc::NetworkFailed, "connection broke: " + failed.message()});
        self->took();
        if (!self->over_) self->read();
      });
    });
  }
  void took() {
    heard_ = std::chrono::steady_clock::now();
    if (type_ == 0xFF00) {
      peer_ = {"", static_cast<ClusterRole>(in_[0]), in_.substr(1)};
      const auto from = socket_.remote_endpoint().address().to_string();
      if (accept_) handlers_ = accept_(peer_, shared_from_this());
      if (handlers_.opened) handlers_.opened(peer_, from);
    } else if (type_ == 0xFFFE) {
      end({});
    } else if (type_ != 0xFFFF) {
      if (handlers_.arrived) handlers_.arrived({type_, std::move(in_)});
    }
  }
  void end(const Outcome& outcome) {
    if (std::exchange(over_, true)) return;
    timer_.cancel();
    boost::system::error_code ignored;
    socket_.close(ignored);
    auto handlers = std::exchange(handlers_, {});
    if (handlers.closed) handlers.closed(outcome);
  }
  asio::io_context& io_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  ClusterRole role_;
  std::string own_;
  SecureLinkOptions options_;
  Handlers handlers_;
  SecureListener::Accept accept_;
  ClusterIdentity peer_;
  std::mutex mutex_;
  std::deque<std::string> out_;
  std::string now_, in_;
  char head_[6];
  std::uint16_t type_ = 0;
  bool busy_ = false, ready_ = false, over_ = false, finishing_ = false;
  std::chrono::steady_clock::time_point heard_;
};

std::shared_ptr<SecureLink> SecureLink::connect(asio::io_context& io, const std::string& host_port, ClusterRole role, ClusterRole, const ClusterSecurity& security,
                                                SecureLinkOptions options, Handlers handlers) {
  auto link = std::make_shared<PlainLink>(io, role, security.name, options);
  link->handlers_ = std::move(handlers);
  const auto colon = host_port.rfind(':');
  const tcp::endpoint to{asio::ip::make_address(host_port.substr(0, colon)), static_cast<std::uint16_t>(std::stoi(host_port.substr(colon + 1)))};
  link->socket_.async_connect(to, [link](auto error) {
    if (error) return link->end({Errc::NetworkFailed, error.message()});
    link->begin();
  });
  return link;
}

class PlainListener final : public SecureListener, public std::enable_shared_from_this<PlainListener> {
 public:
  PlainListener(asio::io_context& io, const tcp::endpoint& at, Options options, std::string own, Accept accept)
      : io_(io), acceptor_(io, at), options_(std::move(options)), own_(std::move(own)), accept_(std::move(accept)) {}
  std::uint16_t port() const noexcept override { return acceptor_.local_endpoint().port(); }
  Refused refused() const override { return {}; }
  void close() override {
    asio::post(io_, [self = shared_from_this()] { self->acceptor_.close(); });
  }
  void wait() {
    auto link = std::make_shared<PlainLink>(io_, ClusterRole::Head, own_, options_.link);
    link->accept_ = accept_;
    acceptor_.async_accept(link->socket_, [self = shared_from_this(), link](auto error) {
      if (error) return;
      link->begin();
      self->wait();
    });
  }
  asio::io_context& io_;
  tcp::acceptor acceptor_;
  Options options_;
  std::string own_;
  Accept accept_;
};

std::shared_ptr<SecureListener> SecureListener::open(asio::io_context& io, ClusterRole, const ClusterSecurity& security, Options options, Accept accept) {
  const auto colon = options.listen.rfind(':');
  const tcp::endpoint at{asio::ip::make_address(options.listen.substr(0, colon)), static_cast<std::uint16_t>(std::stoi(options.listen.substr(colon + 1)))};
  auto listener = std::make_shared<PlainListener>(io, at, std::move(options), security.name, std::move(accept));
  asio::post(io, [listener] { listener->wait(); });
  return listener;
}

}  // namespace troupe::detail

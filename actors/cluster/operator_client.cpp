#include "operator_client.hpp"

#include "../io_thread.hpp"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

namespace troupe::detail {

namespace {

using Milliseconds = std::chrono::milliseconds;

}  // namespace

struct OperatorClient::Inner {
  std::string head;
  Milliseconds limit;
  std::mutex mutex;
  std::condition_variable changed;
  bool is_open = false;
  std::optional<Outcome> closed;
  std::optional<OperatorReply> reply;
  std::uint64_t next_id = 1;
  std::optional<std::pair<OperatorRequest, std::uint64_t>> waiting;  // a request for lines that the head has not answered yet, and its id
  IoThread io;  // after what handlers use, before the link, which it outlives
  std::shared_ptr<SecureLink> link;

  SecureLink::Handlers handlers() {
    return {.opened = [this](const ClusterIdentity&, const std::string&) { change([this] { is_open = true; }); },
            .arrived = [this](const Packet& packet) { arrived(packet); },
            .closed = [this](const Outcome& outcome) { change([this, outcome] { closed = outcome; }); }};
  }

  template <class Change>
  void change(const Change& what) {
    const std::lock_guard lock{mutex};
    what();
    changed.notify_all();
  }

  void arrived(const Packet& packet) {
    try {
      auto came = decode_operator_reply(packet);
      change([&] { reply = std::move(came); });
    } catch (const Failure& failure) {
      change([&] { closed = Outcome{failure.code(), failure.what()}; });
    }
  }

  [[noreturn]] void gone() const {
    const auto& why = *closed;
    if (is_open && (why.ok() || why.code() == Errc::Cancelled)) throw Failure{Errc::Cancelled, "the program at " + head + " has ended"};
    throw Failure{why.ok() ? Errc::NetworkFailed : why.code(), "the head at " + head + (is_open ? " was lost: " : " cannot be reached: ") + why.text()};
  }

  /// The reply to request `id`; nothing when it did not come within `wait`.
  std::optional<OperatorReply> await(std::uint64_t id, Milliseconds wait) {
    std::unique_lock lock{mutex};
    const auto deadline = std::chrono::steady_clock::now() + wait;
    for (;;) {
      if (reply && (reply->id == id || reply->id == 0)) return std::exchange(reply, std::nullopt);
      reply.reset();  // of a request that was given up
      if (closed) gone();
      if (changed.wait_until(lock, deadline) == std::cv_status::timeout && !reply && !closed) return {};
    }
  }

  std::uint64_t send(OperatorRequest request) {
    request.id = next_id++;
    link->send(encode(request)).or_throw();
    return request.id;
  }

  OperatorReply call(decltype(OperatorRequest::order) order) {
    const auto id = send({0, std::move(order)});
    auto came = await(id, limit);
    if (!came) throw Failure{Errc::DeadlinePassed, "the head at " + head + " did not answer within " + std::to_string(limit.count()) + " ms"};
    return std::move(*came);
  }

  template <class Answer>
  Answer as(OperatorReply&& came) const {
    if (const auto* refused = std::get_if<RefusedAnswer>(&came.answer)) throw Failure{refused->code, refused->text};
    if (auto* answer = std::get_if<Answer>(&came.answer)) return std::move(*answer);
    throw Failure{Errc::ProtocolError, "the head at " + head + " answered something else than was asked"};
  }
};

OperatorClient::OperatorClient(std::string head, const ClusterSecurity& security, Milliseconds limit) : inner_(std::make_unique<Inner>()) {
  auto& in = *inner_;
  in.head = std::move(head);
  in.limit = limit;
  SecureLinkOptions options;
  options.connect_timeout = std::min(options.connect_timeout, limit);
  in.link = SecureLink::connect(in.io.io(), in.head, ClusterRole::Operator, ClusterRole::Head, security, options, in.handlers());
  std::unique_lock lock{in.mutex};
  in.changed.wait_for(lock, limit, [&] { return in.is_open || in.closed; });
  if (in.is_open) return;
  if (!in.closed) in.closed = Outcome{Errc::DeadlinePassed, "nothing came within " + std::to_string(limit.count()) + " ms; is a program running there, and is this its address?"};
  in.link->close();
  in.gone();
}

OperatorClient::~OperatorClient() {
  if (!inner_->link) return;
  inner_->link->close();
  {
    std::unique_lock lock{inner_->mutex};
    inner_->changed.wait_for(lock, Milliseconds{500}, [&] { return inner_->closed.has_value(); });
  }
  inner_->io.stop();
}

ClusterStatus OperatorClient::status() { return inner_->as<StatusAnswer>(inner_->call(StatusOrder{})).status; }

LogPage OperatorClient::logs(const LogsOrder& order, Milliseconds wait) {
  auto& in = *inner_;
  if (!order.follow) return in.as<LogsAnswer>(in.call(order)).page;
  if (!in.waiting) {
    const OperatorRequest request{0, order};
    in.waiting = {request, in.send(request)};
  }
  auto came = in.await(in.waiting->second, wait);
  if (!came) return {{}, order.after, 0};
  in.waiting.reset();
  return in.as<LogsAnswer>(std::move(*came)).page;
}

void OperatorClient::stop(const std::string& run, bool now) { (void)inner_->as<DoneAnswer>(inner_->call(StopOrder{run, now})); }

void OperatorClient::drain(const std::string& node) { (void)inner_->as<DoneAnswer>(inner_->call(DrainOrder{node})); }

}  // namespace troupe::detail

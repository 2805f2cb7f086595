#include "operator.hpp"

#include <exception>
#include <utility>

namespace troupe::detail {

namespace {

Packet refused(std::uint64_t id, Errc code, const std::string& text) { return encode(OperatorReply{id, RefusedAnswer{code, text}}); }

std::optional<LogPage> page_of(ClusterView& view, const LogsOrder& order) {
  auto page = view.logs().read(order.filter, order.after, operator_page_lines, operator_page_bytes, order.tail);
  if (order.follow && page.lines.empty() && page.dropped == 0) return {};
  return page;
}

struct Answer {
  ClusterView& view;
  std::uint64_t id;

  std::optional<Packet> operator()(const StatusOrder&) const {
    auto packet = encode(OperatorReply{id, StatusAnswer{view.status()}});
    if (packet.bytes.size() > SecureLinkOptions{}.packet_bytes) return refused(id, Errc::Unsupported, "the cluster's status is too long for one message");
    return packet;
  }
  std::optional<Packet> operator()(const LogsOrder& order) const {
    auto page = page_of(view, order);
    if (!page) return {};
    return encode(OperatorReply{id, LogsAnswer{std::move(*page)}});
  }
  std::optional<Packet> operator()(const StopOrder& order) const {
    view.stop(order.run, order.now);
    return encode(OperatorReply{id, DoneAnswer{}});
  }
  std::optional<Packet> operator()(const DrainOrder& order) const {
    view.drain(order.node);
    return encode(OperatorReply{id, DoneAnswer{}});
  }
};

std::optional<Packet> answer(ClusterView& view, const OperatorRequest& request) {
  try {
    return std::visit(Answer{view, request.id}, request.order);
  } catch (const Failure& failure) {
    return refused(request.id, failure.code(), failure.what());
  } catch (const std::exception& error) {
    return refused(request.id, Errc::Internal, error.what());
  }
}

}  // namespace

std::optional<Packet> answer_operator(ClusterView& view, const Packet& request) {
  try {
    return answer(view, decode_operator_request(request));
  } catch (const Failure& failure) {
    return refused(0, failure.code(), failure.what());
  }
}

std::shared_ptr<OperatorSession> OperatorSession::make(ClusterView& view, Send send) {
  return std::shared_ptr<OperatorSession>{new OperatorSession{view, std::move(send)}};
}

OperatorSession::~OperatorSession() { close(); }

void OperatorSession::put(Packet packet) {
  const std::lock_guard lock{mutex_};
  if (send_) (void)send_(std::move(packet));  // a link that closed tells its own handler
}

void OperatorSession::arrived(const Packet& packet) {
  OperatorRequest request;
  try {
    request = decode_operator_request(packet);
  } catch (const Failure& failure) {
    return put(refused(0, failure.code(), failure.what()));
  }
  if (auto reply = answer(view_, request)) return put(std::move(*reply));
  wait(request);
}

void OperatorSession::wait(const OperatorRequest& request) {
  {
    const std::lock_guard lock{mutex_};
    if (!send_) return;
    if (waiters_.size() >= max_waiting || !waiters_.emplace(request.id, 0).second) {
      (void)send_(refused(request.id, Errc::InvalidArgument, "too many requests wait for log lines on this connection, or one of this id does"));
      return;
    }
  }
  const auto& order = std::get<LogsOrder>(request.order);
  const auto waiter = view_.logs().when_more(order.filter, order.after, [self = weak_from_this(), request] {
    if (const auto session = self.lock()) session->woken(request);
  });
  std::unique_lock lock{mutex_};
  const auto found = waiters_.find(request.id);
  if (found != waiters_.end()) {
    found->second = waiter;
  } else {
    lock.unlock();
    view_.logs().forget(waiter);  // woken or closed meanwhile
  }
}

void OperatorSession::woken(const OperatorRequest& request) {
  {
    const std::lock_guard lock{mutex_};
    if (waiters_.erase(request.id) == 0) return;
  }
  auto at_once = request;
  std::get<LogsOrder>(at_once.order).follow = false;
  if (auto reply = answer(view_, at_once)) put(std::move(*reply));
}

void OperatorSession::close() {
  std::map<std::uint64_t, std::uint64_t> waiters;
  {
    const std::lock_guard lock{mutex_};
    send_ = nullptr;
    waiters.swap(waiters_);
  }
  for (const auto& [request, waiter] : waiters) view_.logs().forget(waiter);
}

}  // namespace troupe::detail

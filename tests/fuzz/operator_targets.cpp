#include "operator_targets.hpp"

#include "../../actors/cluster/operator.hpp"

#include <troupe/launch.hpp>

#include <cstring>
#include <nlohmann/json.hpp>

namespace troupe::fuzz {

namespace {

using namespace troupe::detail;

class View final : public ClusterView {
 public:
  ClusterStatus status() const override {
    ClusterStatus now;
    now.nodes.push_back({"b", "10.0.0.2", NodeState::Draining, {8, 2, 64, {{"license", 1}}}, {4, 1.5, 32, {}}, {{"zone", "a"}}, 77, 0.25, {"mrpc/0"}});
    now.runs.push_back({"mrpc", "/data/mrpc", "running", 3, 2, 1, {"b", "b"}, 120, 4.5, R"({"loss":0.5})", ""});
    return now;
  }
  void stop(const std::string&, bool) override {}
  void drain(const std::string&) override {}
  LogRing& logs() override { return ring_; }

 private:
  LogRing ring_;
};

std::string bytes_of(const Packet& packet) {
  std::string bytes(2, '\0');
  std::memcpy(bytes.data(), &packet.type, 2);
  return bytes + packet.bytes;
}

}  // namespace

int operator_message(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  Packet packet;
  std::memcpy(&packet.type, data, 2);
  packet.bytes.assign(reinterpret_cast<const char*>(data) + 2, size - 2);
  bool is_request = true;
  try {
    const auto request = decode_operator_request(packet);
    const auto again = encode(request);
    if (encode(decode_operator_request(again)).bytes != again.bytes) __builtin_trap();
  } catch (const Failure& failure) {
    if (failure.code() != Errc::ProtocolError) __builtin_trap();
    is_request = false;
  }
  View view;
  if (const auto answer = answer_operator(view, packet)) {
    if (std::holds_alternative<RefusedAnswer>(decode_operator_reply(*answer).answer) == is_request) __builtin_trap();
  }
  try {
    const auto again = encode(decode_operator_reply(packet));
    if (encode(decode_operator_reply(again)).bytes != again.bytes) __builtin_trap();
  } catch (const Failure& failure) {
    if (failure.code() != Errc::ProtocolError) __builtin_trap();
  }
  return 0;
}

std::vector<std::string> operator_message_seeds() {
  std::vector<std::string> seeds;
  for (const auto& request : {OperatorRequest{1, StatusOrder{}}, OperatorRequest{1, LogsOrder{{"mrpc", 1}, 5, 6, false}}, OperatorRequest{1, StopOrder{"mrpc", false}},
                              OperatorRequest{1, DrainOrder{"b"}}}) {
    seeds.push_back(bytes_of(encode(request)));
  }
  const View view;
  for (const auto& reply : {OperatorReply{1, StatusAnswer{view.status()}}, OperatorReply{1, LogsAnswer{{{{4, "mrpc", 1, "b", "a line"}}, 4, 1}}}, OperatorReply{1, DoneAnswer{}},
                            OperatorReply{1, RefusedAnswer{Errc::NotFound, "there is no run"}}}) {
    seeds.push_back(bytes_of(encode(reply)));
  }
  return seeds;
}

int host_list(const std::uint8_t* data, std::size_t size) {
  try {
    for (const auto& host : expand_hosts({reinterpret_cast<const char*>(data), size})) {
      if (host.empty()) __builtin_trap();
    }
  } catch (const Failure&) {
  }
  return 0;
}

}  // namespace troupe::fuzz

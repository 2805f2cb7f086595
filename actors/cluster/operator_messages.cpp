#include "operator_messages.hpp"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

namespace troupe::detail {

namespace {

using Json = nlohmann::ordered_json;

constexpr int deepest_json = 32;

[[noreturn]] void bad(const std::string& what) { throw Failure{Errc::ProtocolError, "an operator's packet " + what}; }

Packet pack(OperatorMessage type, const Json& json) {
  return {static_cast<std::uint16_t>(type), json.dump(-1, ' ', false, Json::error_handler_t::replace)};  // ranks may print what is no UTF-8
}

Json parse(const Packet& packet, std::size_t limit) {
  if (packet.bytes.size() > limit) bad("has " + std::to_string(packet.bytes.size()) + " bytes; at most " + std::to_string(limit) + " are allowed");
  // Deeper values are left out: what prints them again calls itself once for each level.
  auto json = Json::parse(packet.bytes, [](int depth, Json::parse_event_t, Json&) { return depth <= deepest_json; }, false);
  if (!json.is_object()) bad("is no JSON object");
  return json;
}

void only(const Json& json, std::initializer_list<const char*> keys) {
  for (const auto& [key, value] : json.items()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) bad("has the unknown key '" + key.substr(0, 64) + "'");
  }
}

template <class T>
T get(const Json& json, const char* key) {
  const auto found = json.find(key);
  bool sound = found != json.end();
  if constexpr (std::is_same_v<T, bool>) sound = sound && found->is_boolean();
  else if constexpr (std::is_same_v<T, std::string>) sound = sound && found->is_string();
  else if constexpr (std::is_floating_point_v<T>) sound = sound && found->is_number();
  else if constexpr (std::is_unsigned_v<T>) sound = sound && found->is_number_unsigned();
  else sound = sound && found->is_number_integer() && *found >= std::numeric_limits<T>::min() && *found <= std::numeric_limits<T>::max();
  if (!sound) bad("needs a sound value of '" + std::string(key) + "'");
  return found->template get<T>();
}

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

Json line_to_json(const LogLine& line) { return {{"number", line.number}, {"run", line.run}, {"rank", line.rank}, {"node", line.node}, {"text", line.text}}; }

LogLine line_from(const Json& json) {
  if (!json.is_object()) bad("has a line that is no object");
  return {get<std::uint64_t>(json, "number"), get<std::string>(json, "run"), get<int>(json, "rank"), get<std::string>(json, "node"), get<std::string>(json, "text")};
}

LogsOrder logs_from(const Json& json) {
  only(json, {"id", "run", "rank", "after", "tail", "follow"});
  LogsOrder order{{get<std::string>(json, "run"), {}}, get<std::uint64_t>(json, "after"), {}, get<bool>(json, "follow")};
  if (json.contains("rank")) order.filter.rank = get<int>(json, "rank");
  if (json.contains("tail")) order.tail = get<std::size_t>(json, "tail");
  return order;
}

LogPage page_from(const Json& json) {
  LogPage page{{}, get<std::uint64_t>(json, "next"), get<std::uint64_t>(json, "dropped")};
  const auto lines = json.find("lines");
  if (lines == json.end() || !lines->is_array()) bad("needs a list of 'lines'");
  for (const auto& line : *lines) page.lines.push_back(line_from(line));
  return page;
}

}  // namespace

Packet encode(const OperatorRequest& request) {
  Json json{{"id", request.id}};
  return std::visit(Overloaded{[&](const StatusOrder&) { return pack(OperatorMessage::Status, json); },
                               [&](const LogsOrder& order) {
                                 json.update({{"run", order.filter.run}, {"after", order.after}, {"follow", order.follow}});
                                 if (order.filter.rank) json["rank"] = *order.filter.rank;
                                 if (order.tail) json["tail"] = *order.tail;
                                 return pack(OperatorMessage::Logs, json);
                               },
                               [&](const StopOrder& order) {
                                 json.update({{"run", order.run}, {"now", order.now}});
                                 return pack(OperatorMessage::Stop, json);
                               },
                               [&](const DrainOrder& order) {
                                 json["node"] = order.node;
                                 return pack(OperatorMessage::Drain, json);
                               }},
                    request.order);
}

OperatorRequest decode_operator_request(const Packet& packet) {
  const auto type = static_cast<OperatorMessage>(packet.type);
  if (type != OperatorMessage::Status && type != OperatorMessage::Logs && type != OperatorMessage::Stop && type != OperatorMessage::Drain) {
    bad("is of type " + std::to_string(packet.type) + ", which an operator does not send");
  }
  const auto json = parse(packet, operator_request_bytes);
  OperatorRequest request{get<std::uint64_t>(json, "id"), StatusOrder{}};
  if (type == OperatorMessage::Status) {
    only(json, {"id"});
  } else if (type == OperatorMessage::Logs) {
    request.order = logs_from(json);
  } else if (type == OperatorMessage::Stop) {
    only(json, {"id", "run", "now"});
    request.order = StopOrder{get<std::string>(json, "run"), get<bool>(json, "now")};
  } else {
    only(json, {"id", "node"});
    request.order = DrainOrder{get<std::string>(json, "node")};
  }
  return request;
}

Packet encode(const OperatorReply& reply) {
  Json json{{"id", reply.id}};
  return std::visit(Overloaded{[&](const StatusAnswer& answer) {
                                 json["status"] = to_json(answer.status);
                                 return pack(OperatorMessage::StatusReply, json);
                               },
                               [&](const LogsAnswer& answer) {
                                 json.update({{"next", answer.page.next}, {"dropped", answer.page.dropped}, {"lines", Json::array()}});
                                 for (const auto& line : answer.page.lines) json["lines"].push_back(line_to_json(line));
                                 return pack(OperatorMessage::LogsReply, json);
                               },
                               [&](const DoneAnswer&) { return pack(OperatorMessage::Done, json); },
                               [&](const RefusedAnswer& answer) {
                                 json.update({{"error", static_cast<std::uint16_t>(answer.code)}, {"text", answer.text}});
                                 return pack(OperatorMessage::Refused, json);
                               }},
                    reply.answer);
}

OperatorReply decode_operator_reply(const Packet& packet) {
  const auto json = parse(packet, SecureLinkOptions{}.packet_bytes);
  OperatorReply reply{get<std::uint64_t>(json, "id"), DoneAnswer{}};
  switch (static_cast<OperatorMessage>(packet.type)) {
    case OperatorMessage::StatusReply:
      try {
        reply.answer = StatusAnswer{status_from_json(json.at("status"))};
      } catch (const Json::exception& error) {
        bad(std::string("holds no sound status: ") + error.what());
      }
      return reply;
    case OperatorMessage::LogsReply: reply.answer = LogsAnswer{page_from(json)}; return reply;
    case OperatorMessage::Done: return reply;
    case OperatorMessage::Refused: reply.answer = RefusedAnswer{static_cast<Errc>(get<std::uint16_t>(json, "error")), get<std::string>(json, "text")}; return reply;
    default: bad("is of type " + std::to_string(packet.type) + ", which a head does not send");
  }
}

}  // namespace troupe::detail

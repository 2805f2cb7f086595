#pragma once

#include "log_ring.hpp"
#include "secure_link.hpp"

#include <troupe/cluster.hpp>

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>

namespace troupe::detail {

/// Packets between `troupe status|logs|stop|drain|top` and the head. All are JSON objects; every request has an "id" that its reply repeats.
/// Numbers below 0x8000 belong to nodes.
enum class OperatorMessage : std::uint16_t {
  Status = 0x8000,  ///< {id} → StatusReply
  Logs = 0x8001,    ///< {id, run, rank?, after, tail?, follow} → LogsReply, which `follow` lets wait for a line
  Stop = 0x8002,    ///< {id, run, now} → Done
  Drain = 0x8003,   ///< {id, node} → Done
  StatusReply = 0x8100,
  LogsReply = 0x8101,
  Done = 0x8102,
  Refused = 0x8103,  ///< {id, error, text}
};

constexpr std::size_t operator_request_bytes = 4 << 10;  ///< longest request
constexpr std::size_t operator_page_bytes = 512 << 10;   ///< of log lines in one reply, about
constexpr std::size_t operator_page_lines = 4'096;

struct StatusOrder {};
struct LogsOrder {
  LogFilter filter;
  std::uint64_t after = 0;
  std::optional<std::size_t> tail{};
  bool follow = false;
};
struct StopOrder {
  std::string run;
  bool now = false;
};
struct DrainOrder {
  std::string node;
};

struct OperatorRequest {
  std::uint64_t id = 0;
  std::variant<StatusOrder, LogsOrder, StopOrder, DrainOrder> order;
};

[[nodiscard]] Packet encode(const OperatorRequest& request);
/// Strict: throws Failure{ProtocolError} for another type, too many bytes, no JSON, an unknown key or a wrong type.
[[nodiscard]] OperatorRequest decode_operator_request(const Packet& packet);

struct StatusAnswer {
  ClusterStatus status;
};
struct LogsAnswer {
  LogPage page;
};
struct DoneAnswer {};
struct RefusedAnswer {
  Errc code = Errc::Internal;
  std::string text;
};

struct OperatorReply {
  std::uint64_t id = 0;
  std::variant<StatusAnswer, LogsAnswer, DoneAnswer, RefusedAnswer> answer;
};

[[nodiscard]] Packet encode(const OperatorReply& reply);
/// Throws Failure{ProtocolError}.
[[nodiscard]] OperatorReply decode_operator_reply(const Packet& packet);

/// A status as `troupe status --json` prints it; keys are those of the structs.
[[nodiscard]] nlohmann::ordered_json to_json(const ClusterStatus& status);
/// Throws nlohmann::json::exception or Failure{ProtocolError}.
[[nodiscard]] ClusterStatus status_from_json(const nlohmann::ordered_json& json);

}  // namespace troupe::detail

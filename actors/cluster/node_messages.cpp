#include "node_messages.hpp"

#include <troupe/wire.hpp>

#include <array>

namespace troupe {

template <class Archive>
void serialize(Archive& ar, Resources& m) {
  ar(m.cpus, m.gpus, m.memory_bytes, m.custom);
}
inline Numbered<WaitingIn> numbered(WaitingIn& what) { return {what, WaitingIn::Save}; }
template <class Archive>
void serialize(Archive& ar, RankBeat& m) {
  std::int64_t waited = m.waited.count();
  ar(m.progress, m.steps, m.collectives, numbered(m.waiting_in), waited, m.is_stopped, m.stop_calls);
  m.waited = std::chrono::nanoseconds{waited};
  for (auto& phase : m.phases) {
    std::int64_t spent = phase.count();
    ar(spent);
    phase = std::chrono::nanoseconds{spent};
  }
}

}  // namespace troupe

namespace troupe::detail {

template <class Archive>
void serialize(Archive& ar, JoinNode& m) {
  ar(m.version, m.name, m.address, m.resources, m.labels, m.pid);
}
template <class Archive>
void serialize(Archive& ar, NodeSeen& m) {
  ar(m.load);
}
template <class Archive>
void serialize(Archive& ar, FromRank& m) {
  ar(m.run, m.process, m.type, m.bytes);
}
template <class Archive>
void serialize(Archive& ar, OutputTold& m) {
  ar(m.run, m.process, m.lines);
}
template <class Archive>
void serialize(Archive& ar, ProcessOver& m) {
  ar(m.run, m.process, numbered(m.start), m.start_text, numbered(m.link), m.link_text, m.by_signal, m.value, m.last_lines, m.facts);
}
template <class Archive>
void serialize(Archive& ar, OutputFromRank& m) {
  ar(m.run, m.rank, m.is_error, m.text);
}
template <class Archive>
void serialize(Archive& ar, RankSeen& m) {
  ar(m.run, m.process, m.attempt, m.beat);
}
template <class Archive>
void serialize(Archive& ar, ProcessStacks& m) {
  ar(m.run, m.process, m.text);
}
template <class Archive>
void serialize(Archive& ar, DrainNotice& m) {
  ar(m.limit_ms);
}
template <class Archive>
void serialize(Archive& ar, Welcome& m) {
  ar(m.head);
}
template <class Archive>
void serialize(Archive& ar, NodeRefused& m) {
  ar(m.why);
}
template <class Archive>
void serialize(Archive& ar, OpenRun& m) {
  ar(m.run, m.name, m.program, m.program_bytes, m.program_digest, m.arguments, m.environment, m.cpus_per_rank, m.start_timeout_ms, m.beat_ms);
}
template <class Archive>
void serialize(Archive& ar, OpenAttempt& m) {
  ar(m.run, m.attempt, m.ranks, m.timeout_ms, m.proof_path, m.proof, m.must_share, m.directory, m.whole, m.history, m.resume, m.kept);
}
template <class Archive>
void serialize(Archive& ar, TakeProcess& m) {
  ar(m.run, m.process, m.attempt, m.rank);
}
template <class Archive>
void serialize(Archive& ar, ToRank& m) {
  ar(m.run, m.process, m.type, m.bytes);
}
template <class Archive>
void serialize(Archive& ar, AbortAttempt& m) {
  ar(m.run, m.attempt, m.reason);
}
template <class Archive>
void serialize(Archive& ar, CloseAttempt& m) {
  ar(m.run, m.attempt);
}
template <class Archive>
void serialize(Archive& ar, KeepSpares& m) {
  ar(m.run, m.count);
}
template <class Archive>
void serialize(Archive& ar, StartAnew& m) {
  ar(m.run);
}
template <class Archive>
void serialize(Archive& ar, CloseRun& m) {
  ar(m.run);
}
template <class Archive>
void serialize(Archive& ar, OutputTaken& m) {
  ar(m.bytes);
}
template <class Archive>
void serialize(Archive& ar, UserMail& m) {
  ar(m.id, m.from_node, m.to_node, m.to, m.wants_answer, m.is_answer, numbered(m.error), m.type, m.bytes);
}
template <class Archive>
void serialize(Archive& ar, DiskTold& m) {
  ar(m.run, m.attempt, m.is_own, m.is_bringing, m.warnings);
}
template <class Archive>
void serialize(Archive& ar, ListFiles& m) {
  ar(m.run, m.id, m.directory);
}
template <class Archive>
void serialize(Archive& ar, FilesListed& m) {
  ar(m.run, m.id, numbered(m.error), m.text, m.names, m.sizes);
}
template <class Archive>
void serialize(Archive& ar, ReadFile& m) {
  ar(m.run, m.id, m.path, m.begin, m.length, m.has_digest, m.digest);
}
template <class Archive>
void serialize(Archive& ar, FileRead& m) {
  ar(m.run, m.id, numbered(m.error), m.bytes);
}
template <class Archive>
void serialize(Archive& ar, KeepPart& m) {
  ar(m.run, m.id, m.index, m.directory, m.directories, m.note);
}
template <class Archive>
void serialize(Archive& ar, PartKept& m) {
  ar(m.run, m.id, numbered(m.error), m.text);
}
template <class Archive>
void serialize(Archive& ar, DropParts& m) {
  ar(m.run, m.directory, m.directories);
}
/// Those that only name a process.
template <class T>
concept NamesAProcess = std::is_same_v<T, GiveBackProcess> || std::is_same_v<T, ReadOutput> || std::is_same_v<T, FinishProcess> ||
                        std::is_same_v<T, KillProcess> || std::is_same_v<T, AskProcessStacks>;
template <class Archive, NamesAProcess T>
void serialize(Archive& ar, T& m) {
  ar(m.run, m.process);
}

namespace {

constexpr std::size_t envelope_bytes = 4096;
constexpr std::uint16_t first_of_head = 9;  // Welcome

constexpr std::array<std::string_view, std::variant_size_v<NodeMessage>> names = {
    "JoinNode",    "NodeSeen", "FromRank",    "OutputTold",  "ProcessOver",     "OutputFromRank", "RankSeen",      "ProcessStacks", "DrainNotice",
    "Welcome",     "NodeRefused", "OpenRun",  "OpenAttempt", "TakeProcess",     "GiveBackProcess", "ToRank",       "ReadOutput",    "FinishProcess",
    "KillProcess", "AskProcessStacks", "AbortAttempt", "CloseAttempt", "KeepSpares", "StartAnew",  "CloseRun",     "OutputTaken",
    "UserMail",    "DiskTold", "ListFiles",   "FilesListed", "ReadFile",        "FileRead",       "KeepPart",      "PartKept",      "DropParts"};
static_assert(std::is_same_v<std::variant_alternative_t<first_of_head, NodeMessage>, Welcome>);

}  // namespace

SecureLinkOptions node_link_options() {
  SecureLinkOptions options;
  options.packet_bytes = LinkLimits{}.frame_bytes + envelope_bytes;
  return options;
}

std::string node_type_name(std::uint16_t type) {
  return type < names.size() ? std::string(names[type]) : "unknown type " + std::to_string(type);
}

bool is_from_head(std::uint16_t type) noexcept {
  return type >= first_of_head && type < names.size() && names[type] != "DiskTold" && names[type] != "FilesListed" && names[type] != "PartKept";
}

bool is_from_node(std::uint16_t type) noexcept {
  return type < names.size() && (!is_from_head(type) || names[type] == "UserMail" || names[type] == "ReadFile" || names[type] == "FileRead");
}

Packet encode(const NodeMessage& message) {
  Packet packet;
  packet.type = static_cast<std::uint16_t>(message.index());
  WireOutput out{packet.bytes};
  std::visit([&](const auto& content) { out(content); }, message);
  return packet;
}

NodeMessage decode(const Packet& packet, bool from_head) {
  const auto name = node_type_name(packet.type);
  if (packet.type >= names.size()) bad("the peer sent a message of " + name);
  if (!(from_head ? is_from_head(packet.type) : is_from_node(packet.type))) bad("the peer sent " + name + ", which only a " + (from_head ? "node" : "head") + " sends");
  return read_alternative<NodeMessage>(packet.type, packet.bytes, name);
}

}  // namespace troupe::detail

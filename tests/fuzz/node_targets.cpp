#include "node_targets.hpp"

#include "../../actors/cluster/node_messages.hpp"
#include "../../actors/frame.hpp"

#include <cstring>

namespace troupe::fuzz {

namespace {

using namespace troupe::detail;

void read_inner(const NodeMessage& message) {
  const auto read = [](const auto& wrapped) { (void)decode_message(wrapped.type, wrapped.bytes); };
  if (const auto* up = std::get_if<FromRank>(&message)) read(*up);
  if (const auto* down = std::get_if<ToRank>(&message)) read(*down);
}

}  // namespace

int node_message(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  Packet packet;
  std::memcpy(&packet.type, data, 2);
  packet.bytes.assign(reinterpret_cast<const char*>(data) + 2, size - 2);
  for (const bool from_head : {false, true}) {
    try {
      const auto message = decode(packet, from_head);
      const auto again = encode(message);
      if (again.type != packet.type || decode(again, from_head).index() != message.index() || encode(decode(again, from_head)).bytes != again.bytes) __builtin_trap();
      read_inner(message);
    } catch (const Failure& failure) {
      if (failure.code() != Errc::ProtocolError) __builtin_trap();
    }
  }
  return 0;
}

std::vector<std::string> node_message_seeds() {
  const RankBeat beat{7, 6, 5, WaitingIn::Collective, std::chrono::nanoseconds{4}, true, {}, 3};
  RunError facts;
  facts.signal = 9;
  facts.details = "a backtrace\n";
  facts.node = "b";
  JoinNode join;
  join.name = "b";
  join.address = "10.0.0.2";
  join.resources.cpus = 4;
  join.resources.gpus = 0.5;
  join.resources.custom["licence"] = 1;
  join.labels["zone"] = "x";
  join.pid = 4711;
  const auto inner = encode_frame(RankStarted{3, 1, 4711}, 1 << 20).substr(frame_header_bytes);
  const std::vector<NodeMessage> messages = {
      join,
      NodeSeen{0.25},
      FromRank{1, 2, 6, inner},
      OutputTold{1, 2, {"a line", ""}},
      ProcessOver{1, 2, Errc::StartFailed, "no room", Errc::Ok, "", true, 9, {"last"}, facts},
      OutputFromRank{1, 3, true, "oh"},
      RankSeen{1, 2, 3, beat},
      ProcessStacks{1, 2, "stacks"},
      DrainNotice{5'000},
      Welcome{"head"},
      NodeRefused{"why"},
      OpenRun{1, "run", "/bin/x", 10, 11, {"x", "--y"}, {{"A", "B"}}, 2, 60'000, 100},
      OpenAttempt{1, 3, {0, 1, 5}, 600'000, "/shared/run/.troupe_nodes", "00ff", true, "/shared/run", "host:/shared/run", "0f", "checkpoint_000012", {3, 12}},
      TakeProcess{1, 2, 3, 5},
      GiveBackProcess{1, 2},
      ToRank{1, 2, 4, "bytes"},
      ReadOutput{1, 2},
      FinishProcess{1, 2},
      KillProcess{1, 2},
      AskProcessStacks{1, 2},
      AbortAttempt{1, 3, "rank 2 failed"},
      CloseAttempt{1, 3},
      KeepSpares{1, 2},
      StartAnew{1},
      CloseRun{1},
      OutputTaken{4096},
      UserMail{7, "a", "b", "adder", true, false, Errc::Ok, "Sum", "xyz"},
      DiskTold{1, 3, true, false, {"model.safetensors: bytes 0 to 9"}},
      ListFiles{1, 7, "/run/.staging/attempt_1_shared_0"},
      FilesListed{1, 7, Errc::Ok, "", {"model.safetensors", "a/b"}, {4096, 0}},
      ReadFile{1, 7, "checkpoint_000012/model.safetensors", 4096, 512, true, 99},
      FileRead{1, 7, Errc::FileCorrupt, "bytes"},
      KeepPart{1, 7, 12, "/run", {"/run/.staging/attempt_1_shared_0"}, "{}"},
      PartKept{1, 7, Errc::Ok, ""},
      DropParts{1, "/run", {"/run/checkpoint_000003"}}};
  std::vector<std::string> seeds;
  for (const auto& message : messages) {
    const auto packet = encode(message);
    std::string seed(2, '\0');
    std::memcpy(seed.data(), &packet.type, 2);
    seeds.push_back(seed + packet.bytes);
  }
  return seeds;
}

}  // namespace troupe::fuzz

#pragma once

#include "secure_link.hpp"

#include <troupe/link.hpp>
#include <troupe/messages.hpp>
#include <troupe/placement.hpp>
#include <troupe/rank_watch.hpp>

#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

// What a cluster's head and its nodes tell each other, over a SecureLink. `run` is the head's number of a run, `process` its number of a
// rank's process; what comes for one that is not known any more is dropped.

namespace troupe::detail {

constexpr std::uint16_t node_protocol_version = 2;

/// Of both ends: a rank's longest message fits, with its envelope.
[[nodiscard]] SecureLinkOptions node_link_options();

// ---- node to head -------------------------------------------------------------------------------------------

/// The first packet. Answered by Welcome or NodeRefused.
struct JoinNode {
  std::uint16_t version = node_protocol_version;
  std::string name, address;  ///< address: of the network between ranks' hosts
  Resources resources;
  Labels labels;
  std::int64_t pid = 0;
};
/// Once a second.
struct NodeSeen {
  double load = 0;  ///< runnable tasks
};
/// A LinkMessage of a rank.
struct FromRank {
  std::uint64_t run = 0, process = 0;
  std::uint16_t type = 0;
  std::string bytes;
};
/// Answers ReadOutput.
struct OutputTold {
  std::uint64_t run = 0, process = 0;
  std::vector<std::string> lines;
};
/// The last news of a process. `facts`: what its node found out about its end, for RunError.
struct ProcessOver {
  std::uint64_t run = 0, process = 0;
  Errc start = Errc::Ok;
  std::string start_text;
  Errc link = Errc::Ok;
  std::string link_text;
  bool by_signal = false;
  std::int32_t value = 0;
  std::vector<std::string> last_lines;
  RunError facts;
};
/// A line that a rank printed. Answered by OutputTaken: a node does not send more than a MiB ahead.
struct OutputFromRank {
  std::uint64_t run = 0;
  std::int32_t rank = -1;  ///< -1: of a process that is none yet
  bool is_error = false;
  std::string text;
};
/// What a rank's training thread has done, whenever that has changed.
struct RankSeen {
  std::uint64_t run = 0, process = 0;
  Attempt attempt = 0;
  RankBeat beat;
};
/// Answers AskProcessStacks.
struct ProcessStacks {
  std::uint64_t run = 0, process = 0;
  std::string text;
};
/// The node is to leave: move its ranks away. It goes after `limit_ms`, or when it has none.
struct DrainNotice {
  std::int64_t limit_ms = 0;
};

// ---- head to node -------------------------------------------------------------------------------------------

struct Welcome {
  std::string head;
};
/// And the link ends.
struct NodeRefused {
  std::string why;
};
/// A run that is to have ranks here: how its processes are started. A program that is not the head's starts none.
struct OpenRun {
  std::uint64_t run = 0;
  std::string name, program;
  std::uint64_t program_bytes = 0, program_digest = 0;  ///< XXH3-64 of the file
  std::vector<std::string> arguments;
  std::map<std::string, std::string> environment;
  std::int32_t cpus_per_rank = 1;
  std::int64_t start_timeout_ms = 0, beat_ms = 0;
};
/// The node's ranks of an attempt meet in its memory. A node that sees the file `proof_path`, which says `proof`, has the run's directory; another has
/// a disk of its own, unless storage must be shared, and makes `resume` whole there before ranks start. Answered by DiskTold.
struct OpenAttempt {
  std::uint64_t run = 0;
  Attempt attempt = 0;
  std::vector<std::int32_t> ranks;
  std::int64_t timeout_ms = 0;
  std::string proof_path, proof;
  bool must_share = false;
  std::string directory;                ///< the run's
  std::string whole;                    ///< where that is, in words: "host:/path"
  std::string history;                  ///< as PartNote's
  std::string resume;                   ///< "checkpoint_000012"; empty: from the beginning
  std::vector<std::uint64_t> kept;      ///< indices of the checkpoints that the run has
};
/// A process for a rank, with its seat. Answered by ProcessOver when it has ended.
struct TakeProcess {
  std::uint64_t run = 0, process = 0;
  Attempt attempt = 0;
  std::int32_t rank = 0;
};
/// Keep it for the next attempt: nobody speaks of it by this number any more.
struct GiveBackProcess {
  std::uint64_t run = 0, process = 0;
};
/// A LinkMessage for a rank.
struct ToRank {
  std::uint64_t run = 0, process = 0;
  std::uint16_t type = 0;
  std::string bytes;
};
struct ReadOutput {
  std::uint64_t run = 0, process = 0;
};
struct FinishProcess {
  std::uint64_t run = 0, process = 0;
};
struct KillProcess {
  std::uint64_t run = 0, process = 0;
};
struct AskProcessStacks {
  std::uint64_t run = 0, process = 0;
};
struct AbortAttempt {
  std::uint64_t run = 0;
  Attempt attempt = 0;
  std::string reason;
};
/// Nobody meets there any more.
struct CloseAttempt {
  std::uint64_t run = 0;
  Attempt attempt = 0;
};
struct KeepSpares {
  std::uint64_t run = 0;
  std::int32_t count = 0;
};
/// End all processes that wait.
struct StartAnew {
  std::uint64_t run = 0;
};
/// End all its processes.
struct CloseRun {
  std::uint64_t run = 0;
};
struct OutputTaken {
  std::uint64_t bytes = 0;
};

// ---- files of runs whose nodes have disks of their own: `id` is the asker's number of a question ------------------

/// Node to head: whether it has a disk of its own; twice when it brings a checkpoint there, before and after.
struct DiskTold {
  std::uint64_t run = 0;
  Attempt attempt = 0;
  bool is_own = false, is_bringing = false;
  std::vector<std::string> warnings;  ///< of damaged files
};
/// Head to node: which regular files are below `directory`? Answered by FilesListed.
struct ListFiles {
  std::uint64_t run = 0, id = 0;
  std::string directory;
};
struct FilesListed {
  std::uint64_t run = 0, id = 0;
  Errc error = Errc::Ok;
  std::string text;
  std::vector<std::string> names;
  std::vector<std::uint64_t> sizes;
};
/// Both ways: bytes of a file, fewer at its end. A node asks for files of the run's checkpoints ("checkpoint_000012/manifest.troupe"), a head for any, by
/// its absolute path. With a digest the head answers with bytes of that digest, from another node if need be. Answered by FileRead.
struct ReadFile {
  std::uint64_t run = 0, id = 0;
  std::string path;
  std::uint64_t begin = 0;
  std::uint32_t length = 0;  ///< at most segment_bytes
  bool has_digest = false;
  std::uint64_t digest = 0;
};
struct FileRead {
  std::uint64_t run = 0, id = 0;
  Errc error = Errc::Ok;
  std::string bytes;  ///< or a text
};
/// Head to node: checkpoint `index` is committed; what ranks left in `directories` is its part. Answered by PartKept.
struct KeepPart {
  std::uint64_t run = 0, id = 0;
  std::uint64_t index = 0;
  std::string directory;  ///< the run's
  std::vector<std::string> directories;
  std::string note;       ///< text of part.json
};
struct PartKept {
  std::uint64_t run = 0, id = 0;
  Errc error = Errc::Ok;
  std::string text;
};
/// Head to node: these directories, which lie below the run's, are not needed any more.
struct DropParts {
  std::uint64_t run = 0;
  std::string directory;  ///< the run's
  std::vector<std::string> directories;
};

// ---- both ways ----------------------------------------------------------------------------------------------

/// From one program's ClusterMail to another's; the head passes it on. Nodes are named, the head is the empty name.
struct UserMail {
  std::uint64_t id = 0;  ///< of the request, at its sender
  std::string from_node, to_node;
  std::string to;        ///< a published actor
  bool wants_answer = false, is_answer = false;
  Errc error = Errc::Ok; ///< of an answer: then `bytes` is a text
  std::string type;      ///< empty: an answer that is nothing
  std::string bytes;
};

/// A type's place is its number on the wire: append only.
using NodeMessage = std::variant<JoinNode, NodeSeen, FromRank, OutputTold, ProcessOver, OutputFromRank, RankSeen, ProcessStacks, DrainNotice, Welcome,
                                 NodeRefused, OpenRun, OpenAttempt, TakeProcess, GiveBackProcess, ToRank, ReadOutput, FinishProcess, KillProcess,
                                 AskProcessStacks, AbortAttempt, CloseAttempt, KeepSpares, StartAnew, CloseRun, OutputTaken, UserMail, DiskTold,
                                 ListFiles, FilesListed, ReadFile, FileRead, KeepPart, PartKept, DropParts>;

/// "TakeProcess"; "unknown type 99".
[[nodiscard]] std::string node_type_name(std::uint16_t type);
/// Whether it may come from a head, or from a node. UserMail, ReadFile and FileRead go both ways.
[[nodiscard]] bool is_from_head(std::uint16_t type) noexcept;
[[nodiscard]] bool is_from_node(std::uint16_t type) noexcept;

[[nodiscard]] Packet encode(const NodeMessage& message);
/// Of a packet that came from a head, or from a node. Throws Failure{ProtocolError} naming the type; allocates no more than a small multiple
/// of its bytes.
[[nodiscard]] NodeMessage decode(const Packet& packet, bool from_head);

}  // namespace troupe::detail

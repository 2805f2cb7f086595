#include <troupe/failure_rules.hpp>

namespace troupe {

namespace {

// No retry: the cause is in what the user wrote or asked for, and the next attempt would meet it again.
constexpr FailureRule rules[] = {
    {Errc::Ok, false, -1, "nothing failed", ""},
    {Errc::InvalidArgument, false, -1, "the same call would be refused again", "correct the call that the text names"},
    {Errc::InvalidConfig, false, -1, "the same configuration would be refused again", "correct the key that the text names"},
    {Errc::FileNotFound, true, 2, "a network file system may show the file later", "check the path, and that every node sees it"},
    {Errc::FileCorrupt, true, 2, "an older copy may be whole", "look at it with `troupe checkpoint verify`, or fetch the file again"},
    {Errc::StorageUnavailable, false, -1, "a disk that is full or gone stays so, and retrying would lose more steps", "free space or mend the mount, then start again: the run resumes"},
    {Errc::DataMalformed, false, -1, "the same row would be read again", "correct or leave out the named row"},
    {Errc::TrainFunctionFailed, true, -1, "what a train function throws may come from a passing cause", "the message and the last lines name the cause"},
    {Errc::RankExited, true, -1, "something in the process called exit; it may not do so again", "see the last lines for who ended it"},
    {Errc::RankKilled, true, -1, "processes are killed by passing causes", "see the crash record; for SIGKILL look at the machine's log"},
    {Errc::DeadlinePassed, true, -1, "a rank that hangs is replaced", "see its stack; when the wait was long but right, raise the timeout that the text names"},
    {Errc::Aborted, true, -1, "it ended only because another did", "look for the first failure"},
    {Errc::CollectiveMismatch, true, 2, "ranks that disagree once may have raced; twice is a bug in the loop", "make every rank take the same branch before the collective that the text names"},
    {Errc::ProtocolError, true, 2, "a damaged message is rare; twice is a bug or another program", "start all ranks from one build of the program"},
    {Errc::StartFailed, true, -1, "limits on processes, threads and descriptors may have room again", "raise the limit that the text names"},
    {Errc::Cancelled, false, -1, "it was stopped on request", ""},
    {Errc::NotFound, false, -1, "what is not there will not be there", "choose one of those that the text lists"},
    {Errc::AlreadyExists, false, -1, "it will still be there", "choose another name, or resume"},
    {Errc::Unsupported, false, -1, "this build or machine will not learn it", "see what the text offers instead"},
    {Errc::Internal, true, -1, "a bug may need a certain order of events", "please report it with this file"},
    {Errc::OutOfMemory, true, 2, "memory may have been short for a moment; twice means that the state does not fit",
     "take a smaller micro-batch and accumulate more, use activation checkpointing, shard or offload more (docs/sharding.md), or give it more memory; "
     "`troupe estimate-memory` says what a model takes"},
    {Errc::DeviceFailed, true, 3, "a new process has a sound device context; three times means that a kernel or an index is wrong",
     "run with CUDA_LAUNCH_BLOCKING=1 to see the call; of an assertion the index that is out of range is usually a label or a token id",
     false},
    {Errc::DeviceLost, true, 2, "another process may get memory pages or a device that are sound", "look for Xid messages in the kernel's log, and reset or leave out the GPU",
     false},
    {Errc::NetworkFailed, true, -1, "connections break by passing causes", "look at the other ranks' errors first; NCCL_DEBUG=WARN says which interface it was"},
    {Errc::NodeLost, true, -1, "other nodes may have room for its ranks", "look at the agent's log on that node, and at the network between it and the head"},
};

}  // namespace

const FailureRule& failure_rule(Errc code) noexcept {
  for (const auto& rule : rules) {
    if (rule.code == code) return rule;
  }
  return rules[static_cast<std::size_t>(Errc::Internal)];
}

std::span<const FailureRule> failure_rules() noexcept { return rules; }

}  // namespace troupe

#pragma once

#include <troupe/caf_types.hpp>
#include <troupe/rank_watch.hpp>

#include <string>

// How a group learns what its ranks are at. These never leave the group's process: a rank in a process of its own is looked at
// through memory that it shares, so that one which answers nothing is seen too.

namespace troupe {

/// WorkerGroup to Rank, once a period: answered by Beat, at once.
struct AskBeat {
  Attempt attempt = 0;
};

/// Rank to WorkerGroup.
struct Beat {
  Attempt attempt = 0;
  int rank = 0;
  RankBeat beat;
};

/// WorkerGroup to a rank that it suspects: what are your threads at? Answered by StacksTold, or never.
struct AskStacks {
  Attempt attempt = 0;
};

/// Rank to WorkerGroup. `text`: lines for RunError::details.
struct StacksTold {
  Attempt attempt = 0;
  int rank = 0;
  std::string text;
};

/// WorkerGroup to itself: look at the ranks.
struct LookDue {};

/// WorkerGroup to itself: wait for a suspect's stacks no longer.
struct StacksOverdue {};

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::AskBeat)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::Beat)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::AskStacks)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StacksTold)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::LookDue)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StacksOverdue)

#pragma once

#include <troupe/communicator.hpp>

#include <memory>

namespace troupe {

/// Debug mode: before each collective of `group` its ranks compare what they are about to call (call, number, reduction,
/// types, bytes, root, label). When they differ, nobody runs it: on every rank its Work fails at once with
/// CollectiveMismatch, naming each rank's call, and the group is aborted. Each call waits for all ranks, so nothing
/// overlaps any more. Groups split from it are checked too.
///
/// `side`: a group of the same ranks in host memory over which they compare; without it, one is split from `group`,
/// which every rank must then do at the same time (memory of GPUs needs a `side`). Its traffic is not `group`'s.
[[nodiscard]] std::unique_ptr<Communicator> checked_communicator(std::unique_ptr<Communicator> group,
                                                                 std::unique_ptr<Communicator> side = nullptr);

}  // namespace troupe

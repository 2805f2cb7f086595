#pragma once

#include <troupe/communicator.hpp>

#include <memory>

namespace troupe {

/// What breaks, and when.
struct Fault {
  enum class Kind : std::uint8_t {
    Fail,   ///< the collective's Work fails with `outcome`, and the group is aborted with the same text
    Throw,  ///< the call itself throws Failure{outcome}
    Stall,  ///< this rank stays away for `stall`, then goes on
  };
  int at_operation = 0;  ///< counts this seat's collectives from 0, those of groups split from it too; a split is one
  Kind kind = Kind::Fail;
  Outcome outcome{Errc::Aborted, "fault on purpose"};
  std::chrono::milliseconds stall{0};
};

/// For tests: `group` with a fault. Sweep `at_operation` from 0 until the run passes.
[[nodiscard]] std::unique_ptr<Communicator> faulty_communicator(std::unique_ptr<Communicator> group, Fault fault);

}  // namespace troupe

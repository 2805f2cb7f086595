#pragma once

#include <troupe/session.hpp>

#include <string>

namespace troupe {

/// The train functions of the cluster's tests.
[[nodiscard]] TrainFunctions cluster_cases();

/// This program as something else: "--agent HOST:PORT NAME CPUS", a node until it is killed; "--drive PORT FUNCTION RANKS STORAGE", a head that
/// runs a function on two nodes that it waits for. Nothing: it is the test.
[[nodiscard]] bool runs_as_other(const Session& session, int argc, char** argv, int& code);

}  // namespace troupe

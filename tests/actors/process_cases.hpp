#pragma once

#include <troupe/session.hpp>

namespace troupe {

/// The train functions of process_test.
[[nodiscard]] TrainFunctions process_cases();

/// Runs two ranks that sleep and append their process numbers to the file $TROUPE_TEST_PIDS.
int drive(const Session& session);

}  // namespace troupe

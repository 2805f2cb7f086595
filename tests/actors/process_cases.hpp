#pragma once

#include <troupe/session.hpp>

namespace troupe {

/// The train functions of process_test.
[[nodiscard]] TrainFunctions process_cases();

/// Runs two ranks that sleep and append their process numbers to the file $TROUPE_TEST_PIDS.
int drive(const Session& session);

/// Runs $TROUPE_TEST_FUNCTION on two ranks through TorchTrainer. Returns its exit code; 99 when the ranks' reports differ.
int fit(const Session& session);

}  // namespace troupe

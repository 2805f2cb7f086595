#pragma once

#include <cstdint>

namespace troupe {

/// What the losses of an accumulation window that the end of the data cuts short are divided by.
enum class TailDivisor : std::uint8_t {
  OwnLength,  ///< the window's own number of batches: every update is a mean
  FullLength  ///< num_steps, as in Accelerate 1.15: the last update of an epoch is smaller
};

/// How gradients are accumulated; names and defaults as in Accelerate, `tail_divisor` added.
struct GradientAccumulationPlugin {
  int num_steps = 1;
  /// Accelerate's name; as there, no learning rate depends on it: a prepared scheduler steps once per update.
  bool adjust_scheduler = true;
  bool sync_with_dataloader = true;  ///< the last batch of an epoch always ends its window
  /// Reduce gradients after every batch, not only after a window's last: more communication, and between batches no
  /// gradient that is this rank's alone.
  bool sync_each_batch = false;
  TailDivisor tail_divisor = TailDivisor::OwnLength;
};

}  // namespace troupe

#pragma once

#include <troupe/train_context.hpp>

#include <exception>
#include <functional>

namespace troupe {

struct BatchSizeSearch {
  int starting_batch_size = 128;
  /// The next size to try; must be smaller. Empty: nine tenths, rounded down, as in Accelerate 1.15.
  std::function<int(int batch_size)> reduce_fn = {};
};

/// Runs `fn(attempt, batch_size)` with smaller and smaller sizes until no rank runs out of memory, and returns the size.
/// When one rank runs out, all ranks leave their attempt and go on to the same next size. Collective.
///
/// `fn` must make its Accelerator, models and optimizers itself, out of the context it is given, and take all
/// collectives from it: they all end with it. Before each of that context's collectives the ranks agree, in an
/// all-reduce of one byte, that none has run out; so a rank may run out anywhere (in the data, forward, backward between two
/// reductions, the optimizer), under any engine, and no peer is left waiting. That byte costs overlap: give `fn` a few
/// steps with the longest inputs, and train outside with the size found.
///
/// Not covered: memory that a peer's own process runs out of (the kernel kills it), and collectives of other communicators.
///
/// Threads: the rank's own. Errors: Failure{InvalidArgument} when the size reaches 0, on all ranks; what else `fn` throws.
int find_executable_batch_size(TrainContext& context, const std::function<void(TrainContext& attempt, int batch_size)>& fn,
                               const BatchSizeSearch& search = {});

/// std::bad_alloc, LibTorch's OutOfMemoryError, and what allocators say in words.
[[nodiscard]] bool is_out_of_memory(const std::exception& error);

}  // namespace troupe

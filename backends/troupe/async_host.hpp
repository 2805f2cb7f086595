#pragma once

#include <troupe/communicator.hpp>
#include <troupe/device.hpp>

#include <chrono>
#include <cstdint>
#include <memory>

namespace troupe {

struct AsyncHost {
  std::chrono::microseconds max_delay{300};  ///< before each operation of a stream, drawn anew
  std::uint64_t seed = 1;
};

/// For tests: host memory with streams that really are asynchronous. Each is a thread that does what it was given later
/// than a GPU would, so that a missing wait is a race that shows. LibTorch's operations on the CPU are done by the
/// calling thread at once, hence that thread is the compute stream: its `wait` blocks.
[[nodiscard]] std::unique_ptr<DeviceRuntime> async_host_runtime(const AsyncHost& options = {});

/// `group` with its collectives on a stream of `runtime`, one of the above that outlives it, as NCCL's are on a GPU: a
/// call returns at once, the collective begins after what the compute stream has, and its event passes when it is done.
[[nodiscard]] std::unique_ptr<Communicator> on_stream(std::unique_ptr<Communicator> group, DeviceRuntime& runtime);

}  // namespace troupe

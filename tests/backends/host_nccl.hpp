#pragma once

#include "nccl_tables.hpp"

#include <chrono>
#include <string>

namespace troupe::host_nccl {

// NCCL's and CUDA's functions over host memory and threads: what they do with streams, events and non-blocking calls, so
// that the communicator's logic runs without a GPU. Not NCCL: it says nothing about a GPU's speed, kernels or transport.

[[nodiscard]] NcclTable nccl();
[[nodiscard]] GpuTable gpu();

/// From now on the `n`-th (from 0) collective call of this process returns ncclInternalError; -1: none does.
void fail_at_call(int n);
/// Streams, events and communicators that exist now.
[[nodiscard]] int num_live();
/// Streams of this process do each thing up to so much later.
void delay_streams(std::chrono::microseconds longest);

}  // namespace troupe::host_nccl

#pragma once

#include <troupe/communicator.hpp>

#include "nccl_tables.hpp"

#include <chrono>
#include <memory>
#include <string>

namespace troupe {

struct NcclSeat {
  ncclUniqueId id{};
  int rank = 0;
  int size = 1;
  int device = 0;
  std::chrono::milliseconds timeout{600'000};
  /// Work queued here before a collective is finished before the collective reads its buffers.
  cudaStream_t compute_stream = nullptr;
};

/// A communicator over NCCL's functions, on a stream of its own. Non-blocking NCCL calls with a deadline: a peer that does
/// not come ends in an abort of this rank's communicator, never in a hang.
[[nodiscard]] std::unique_ptr<Communicator> make_nccl_communicator(const NcclTable& nccl, const GpuTable& gpu, const NcclSeat& seat);

}  // namespace troupe

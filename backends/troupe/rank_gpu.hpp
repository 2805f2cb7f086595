#pragma once

#include <troupe/communicator.hpp>
#include <troupe/device.hpp>
#include <troupe/nccl.hpp>

#include <chrono>
#include <memory>

namespace troupe {

/// Loads the plug-in, and LibTorch's CUDA library into this process: before anything asks LibTorch for CUDA, even a backward
/// on the CPU, or it stays without. Throws Failure{Unsupported} saying what is missing for `num_ranks` ranks with a GPU each.
[[nodiscard]] std::shared_ptr<NcclPlugin> load_gpus(int num_ranks);

/// Throws Failure{Unsupported} unless there is a GPU for each of a host's ranks.
void require_gpus(const NcclPlugin& plugin, int num_ranks);

/// What a rank has of its GPU.
struct RankGpu {
  std::unique_ptr<DeviceRuntime> runtime;
  std::unique_ptr<Communicator> communicator;  ///< over NCCL, for memory of the GPU
};

/// GPU number `local_rank`, and a seat among all ranks' GPUs. Collective over `host`, the ranks' group for host memory.
/// Throws Failure{Unsupported, DeadlinePassed}.
[[nodiscard]] RankGpu open_rank_gpu(NcclPlugin& plugin, Communicator& host, int local_rank, std::chrono::milliseconds timeout);

}  // namespace troupe

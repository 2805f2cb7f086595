#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

namespace troupe {

/// NCCL's functions that the communicator calls, as a table: its logic runs against another implementation where there
/// is no GPU.
struct NcclTable {
  decltype(&ncclGetVersion) GetVersion;
  decltype(&ncclGetUniqueId) GetUniqueId;
  decltype(&ncclCommInitRankConfig) CommInitRankConfig;
  decltype(&ncclCommSplit) CommSplit;
  decltype(&ncclCommCount) CommCount;
  decltype(&ncclCommUserRank) CommUserRank;
  decltype(&ncclCommGetAsyncError) CommGetAsyncError;
  decltype(&ncclCommAbort) CommAbort;
  decltype(&ncclCommFinalize) CommFinalize;
  decltype(&ncclCommDestroy) CommDestroy;
  decltype(&ncclAllReduce) AllReduce;
  decltype(&ncclReduceScatter) ReduceScatter;
  decltype(&ncclReduce) Reduce;
  decltype(&ncclGroupStart) GroupStart;
  decltype(&ncclGroupEnd) GroupEnd;
  decltype(&ncclAllGather) AllGather;
  decltype(&ncclBroadcast) Broadcast;
  decltype(&ncclGetErrorString) GetErrorString;
};

/// The CUDA runtime's, likewise.
struct GpuTable {
  decltype(&cudaGetDeviceCount) GetDeviceCount;
  decltype(&cudaSetDevice) SetDevice;
  decltype(&cudaStreamCreateWithFlags) StreamCreateWithFlags;
  decltype(&cudaStreamDestroy) StreamDestroy;
  decltype(&cudaStreamWaitEvent) StreamWaitEvent;
  decltype(&cudaEventCreateWithFlags) EventCreateWithFlags;
  decltype(&cudaEventRecord) EventRecord;
  decltype(&cudaEventQuery) EventQuery;
  decltype(&cudaEventSynchronize) EventSynchronize;
  decltype(&cudaEventDestroy) EventDestroy;
  cudaError_t (*Malloc)(void**, size_t);
  cudaError_t (*Free)(void*);
  cudaError_t (*HostAlloc)(void**, size_t);
  decltype(&cudaFreeHost) FreeHost;
  decltype(&cudaMemset) Memset;
  decltype(&cudaMemcpyAsync) MemcpyAsync;
  decltype(&cudaMemsetAsync) MemsetAsync;
  decltype(&cudaGetErrorString) GetErrorString;
};

}  // namespace troupe

#include <troupe/nccl.hpp>

#include "cuda_device.hpp"
#include "nccl_communicator.hpp"

#include <cstring>

namespace troupe {

namespace {

NcclTable real_nccl() {
  return {&ncclGetVersion,        &ncclGetUniqueId, &ncclCommInitRankConfig, &ncclCommSplit,     &ncclCommCount,
          &ncclCommUserRank,      &ncclCommGetAsyncError, &ncclCommAbort,    &ncclCommFinalize,  &ncclCommDestroy,
          &ncclAllReduce,         &ncclReduceScatter, &ncclReduce, &ncclGroupStart, &ncclGroupEnd, &ncclAllGather,        &ncclBroadcast,     &ncclGetErrorString};
}

GpuTable real_gpu() {
  return {&cudaGetDeviceCount,
          &cudaSetDevice,
          &cudaStreamCreateWithFlags,
          &cudaStreamDestroy,
          &cudaStreamWaitEvent,
          &cudaEventCreateWithFlags,
          &cudaEventRecord,
          &cudaEventQuery,
          &cudaEventSynchronize,
          &cudaEventDestroy,
          [](void** memory, size_t bytes) { return cudaMalloc(memory, bytes); },
          [](void* memory) { return cudaFree(memory); },
          [](void** memory, size_t bytes) { return cudaHostAlloc(memory, bytes, cudaHostAllocPortable); },
          &cudaFreeHost,
          &cudaMemset,
          &cudaMemcpyAsync,
          &cudaMemsetAsync,
          &cudaGetErrorString};
}

class Plugin final : public NcclPlugin {
 public:
  int device_count() const override {
    int count = 0;
    return gpu_.GetDeviceCount(&count) == cudaSuccess ? count : 0;
  }
  int version() const override {
    int version = 0;
    (void)nccl_.GetVersion(&version);
    return version;
  }
  std::string unique_id() const override {
    ncclUniqueId id;
    if (const auto code = nccl_.GetUniqueId(&id); code != ncclSuccess) {
      throw Failure{Errc::Unsupported, std::string("ncclGetUniqueId: ") + nccl_.GetErrorString(code)};
    }
    return {id.internal, sizeof(id.internal)};
  }
  std::unique_ptr<Communicator> communicator(const std::string& unique_id, int rank, int size, int device,
                                             std::chrono::milliseconds timeout) override {
    NcclSeat seat{.id = {}, .rank = rank, .size = size, .device = device, .timeout = timeout};
    if (unique_id.size() != sizeof(seat.id.internal)) {
      throw Failure{Errc::InvalidArgument, "an NCCL unique id has " + std::to_string(sizeof(seat.id.internal)) + " bytes, not " +
                                               std::to_string(unique_id.size())};
    }
    std::memcpy(seat.id.internal, unique_id.data(), unique_id.size());
    return make_nccl_communicator(nccl_, gpu_, seat);
  }
  std::unique_ptr<DeviceRuntime> runtime(int device) override { return make_cuda_runtime(gpu_, device); }

 private:
  NcclTable nccl_ = real_nccl();
  GpuTable gpu_ = real_gpu();
};

}  // namespace

}  // namespace troupe

extern "C" __attribute__((visibility("default"))) troupe::NcclPlugin* troupe_nccl_open(int abi) {
  return abi == troupe::kNcclPluginAbi ? new troupe::Plugin : nullptr;
}

#pragma once

#include <troupe/device.hpp>

#include "nccl_tables.hpp"

namespace troupe {

/// After what `stream` has when it is made. Throws Failure{Unsupported} with CUDA's reason.
class CudaEvent final : public Event {
 public:
  CudaEvent(const GpuTable& gpu, cudaStream_t stream);
  ~CudaEvent() override { (void)gpu_.EventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  bool query() const override;
  void synchronize() const override;
  [[nodiscard]] cudaEvent_t native() const noexcept { return event_; }

 private:
  GpuTable gpu_;
  cudaEvent_t event_ = nullptr;
};

/// Throws Failure{StartFailed}.
[[nodiscard]] std::shared_ptr<void> cuda_memory(const GpuTable& gpu, std::size_t bytes);

/// A GPU by the CUDA runtime's functions. @param compute the stream that LibTorch uses.
[[nodiscard]] std::unique_ptr<DeviceRuntime> make_cuda_runtime(const GpuTable& gpu, int device, cudaStream_t compute = nullptr);

}  // namespace troupe

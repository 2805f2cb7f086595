#include "cuda_device.hpp"

#include <troupe/errors.hpp>

namespace troupe {

namespace {

void check(const GpuTable& gpu, cudaError_t code, const char* call, Errc errc = Errc::Unsupported) {
  if (code != cudaSuccess) throw Failure{errc, std::string{call} + ": " + gpu.GetErrorString(code)};
}

/// A stream of its own, or one that belongs to LibTorch.
class CudaStream final : public Stream {
 public:
  CudaStream(const GpuTable& gpu, cudaStream_t stream, bool owned) : gpu_(gpu), stream_(stream), owned_(owned) {}
  ~CudaStream() override {
    if (!owned_) return;
    try {
      synchronize();  // cudaStreamDestroy does not wait
    } catch (const Failure&) {  // a broken device has no work left
    }
    (void)gpu_.StreamDestroy(stream_);
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  std::shared_ptr<const Event> record() override { return std::make_shared<const CudaEvent>(gpu_, stream_); }
  void wait(const Event& event) override {
    const auto* known = dynamic_cast<const CudaEvent*>(&event);
    if (!known) throw Failure{Errc::InvalidArgument, "a CUDA stream was asked to wait for another runtime's event"};
    check(gpu_, gpu_.StreamWaitEvent(stream_, known->native(), 0), "cudaStreamWaitEvent");
  }
  void copy_async(void* to, const void* from, std::size_t bytes) override {
    if (bytes) check(gpu_, gpu_.MemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "cudaMemcpyAsync");
  }
  void fill_async(void* to, std::uint8_t value, std::size_t bytes) override {
    if (bytes) check(gpu_, gpu_.MemsetAsync(to, value, bytes, stream_), "cudaMemsetAsync");
  }

 private:
  GpuTable gpu_;
  cudaStream_t stream_;
  bool owned_;
};

class CudaRuntime final : public DeviceRuntime {
 public:
  CudaRuntime(const GpuTable& gpu, int device, cudaStream_t compute) : gpu_(gpu), device_(device), compute_(gpu, compute, false) { use(); }
  std::string name() const override { return "cuda"; }
  Device device() const noexcept override { return {Device::Kind::Cuda, device_}; }
  bool has_own_memory() const noexcept override { return true; }
  std::unique_ptr<Stream> create_stream() override {
    use();
    cudaStream_t stream = nullptr;
    check(gpu_, gpu_.StreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return std::make_unique<CudaStream>(gpu_, stream, true);
  }
  Stream& compute_stream() override { return compute_; }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    use();
    return cuda_memory(gpu_, bytes);
  }
  std::shared_ptr<void> allocate_pinned(std::size_t bytes) override {
    use();
    void* memory = nullptr;
    check(gpu_, gpu_.HostAlloc(&memory, bytes ? bytes : 1), "cudaHostAlloc", Errc::StartFailed);
    return {memory, [free = gpu_.FreeHost](void* p) { (void)free(p); }};
  }

 private:
  /// The calling thread's device.
  void use() { check(gpu_, gpu_.SetDevice(device_), "cudaSetDevice"); }

  GpuTable gpu_;
  int device_;
  CudaStream compute_;
};

}  // namespace

CudaEvent::CudaEvent(const GpuTable& gpu, cudaStream_t stream) : gpu_(gpu) {
  check(gpu_, gpu_.EventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
  if (const auto code = gpu_.EventRecord(event_, stream); code != cudaSuccess) {
    (void)gpu_.EventDestroy(event_);
    check(gpu_, code, "cudaEventRecord");
  }
}

bool CudaEvent::query() const {
  const auto code = gpu_.EventQuery(event_);
  if (code == cudaErrorNotReady) return false;
  check(gpu_, code, "cudaEventQuery");
  return true;
}

void CudaEvent::synchronize() const { check(gpu_, gpu_.EventSynchronize(event_), "cudaEventSynchronize"); }

std::shared_ptr<void> cuda_memory(const GpuTable& gpu, std::size_t bytes) {
  void* memory = nullptr;
  check(gpu, gpu.Malloc(&memory, bytes ? bytes : 1), "cudaMalloc", Errc::StartFailed);
  return {memory, [free = gpu.Free](void* p) { (void)free(p); }};
}

std::unique_ptr<DeviceRuntime> make_cuda_runtime(const GpuTable& gpu, int device, cudaStream_t compute) {
  return std::make_unique<CudaRuntime>(gpu, device, compute);
}

}  // namespace troupe

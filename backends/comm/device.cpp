#include "host_stream.hpp"
#include "request.hpp"

namespace troupe {

namespace {

class CpuRuntime final : public DeviceRuntime {
 public:
  std::string name() const override { return "cpu"; }
  Device device() const noexcept override { return {}; }
  bool has_own_memory() const noexcept override { return false; }
  std::unique_ptr<Stream> create_stream() override { return std::make_unique<detail::HostStream>(); }
  Stream& compute_stream() override { return compute_; }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return detail::allocate_from_heap(bytes); }
  std::shared_ptr<void> allocate_pinned(std::size_t bytes) override { return detail::allocate_from_heap(bytes); }

 private:
  detail::HostStream compute_;  // no state: all ranks of the process share it
};

}  // namespace

DeviceRuntime& cpu_runtime() {
  static CpuRuntime runtime;
  return runtime;
}

}  // namespace troupe

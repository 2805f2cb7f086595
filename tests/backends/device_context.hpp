#pragma once

#include "fake_context.hpp"

#include <troupe/async_host.hpp>

namespace troupe::test {

/// A context whose tensors are on a device with streams, though they lie in host memory: sharded training runs on it as on
/// a GPU, except that LibTorch's operations are done by the calling thread.
class DeviceContext final : public FakeContext {
 public:
  DeviceContext(Communicator& group, std::unique_ptr<DeviceRuntime> runtime, std::unique_ptr<Communicator> seat)
      : FakeContext(group), runtime_(std::move(runtime)), seat_(std::move(seat)) {}
  DeviceRuntime& device_runtime() override { return *runtime_; }
  Communicator& device_communicator() override { return *seat_; }

 private:
  std::unique_ptr<DeviceRuntime> runtime_;
  std::unique_ptr<Communicator> seat_;
};

/// On the asynchronous host. Collective.
inline std::unique_ptr<DeviceContext> async_host_context(Communicator& group) {
  auto runtime = async_host_runtime({.seed = static_cast<std::uint64_t>(100 * group.rank() + 1)});
  auto seat = on_stream(group.split(0), *runtime);
  return std::make_unique<DeviceContext>(group, std::move(runtime), std::move(seat));
}

}  // namespace troupe::test

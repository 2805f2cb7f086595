#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace troupe {

/// A rank's device: the host's processor, or one of its GPUs.
struct Device {
  enum class Kind : std::uint8_t { Cpu, Cuda } kind = Kind::Cpu;
  int index = 0;
};

/// A moment in a stream's work: it passes when all that was queued before it is done. Threads: any.
class Event {
 public:
  virtual ~Event() = default;
  [[nodiscard]] virtual bool query() const = 0;
  /// Blocks the calling thread until it passes. Throws what went wrong on the device meanwhile.
  virtual void synchronize() const = 0;
};

/// Work that a device does in order of calls, beside the calling thread and other streams. Events are the only order
/// between streams.
///
/// Threads: one caller at a time. Errors: Failure of the driver. Destroying a stream waits for its work.
class Stream {
 public:
  virtual ~Stream() = default;
  [[nodiscard]] virtual std::shared_ptr<const Event> record() = 0;
  /// What is queued from here on begins after `event`, which is of the same runtime.
  virtual void wait(const Event& event) = 0;
  /// Memory of the device or of the host (pinned, or the copy may be synchronous), which must live until an event
  /// recorded afterwards has passed. The ranges do not overlap.
  virtual void copy_async(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill_async(void* to, std::uint8_t value, std::size_t bytes) = 0;
  void synchronize() { record()->synchronize(); }
};

/// Streams, events and memory of one device: all that the sharding engine asks of it. Three implementations: the CPU's,
/// where everything is done when a call returns; CUDA's, in the plug-in library; and `async_host_runtime` for tests.
///
/// Threads: any, except the streams it hands out.
class DeviceRuntime {
 public:
  virtual ~DeviceRuntime() = default;
  /// "cpu", "async_host", "cuda"
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual Device device() const noexcept = 0;
  /// Whether tensors lie elsewhere than in host memory: what is offloaded must be copied.
  [[nodiscard]] virtual bool has_own_memory() const noexcept = 0;
  [[nodiscard]] virtual std::unique_ptr<Stream> create_stream() = 0;
  /// LibTorch's current stream, on which operations on tensors run; of the CPU: the calling thread.
  [[nodiscard]] virtual Stream& compute_stream() = 0;
  /// Memory of the device; contents undefined. Throws Failure{StartFailed} when there is none left.
  [[nodiscard]] virtual std::shared_ptr<void> allocate(std::size_t bytes) = 0;
  /// Host memory that the device copies from and to while the host goes on; contents undefined.
  [[nodiscard]] virtual std::shared_ptr<void> allocate_pinned(std::size_t bytes) = 0;
};

/// The host's processor. A copy is a memcpy, an event has passed when it is recorded.
[[nodiscard]] DeviceRuntime& cpu_runtime();

}  // namespace troupe

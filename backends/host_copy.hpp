#pragma once

#include <troupe/device.hpp>

#include <ATen/core/Tensor.h>

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace troupe::detail {

/// Copies of tensors to pinned host memory and back, on a stream of their own: compute goes on meanwhile.
///
/// Threads: one caller at a time; what it hands out may outlive it.
class OffloadStream {
 public:
  explicit OffloadStream(DeviceRuntime& runtime) : runtime_(runtime), copies_(runtime.create_stream()) {}

  /// @param tensor dense; kept until it is copied.
  [[nodiscard]] std::shared_ptr<void> take(const at::Tensor& tensor);
  /// Compute may use `tensor` at once.
  void give_back(const std::shared_ptr<void>& memory, const at::Tensor& tensor);

 private:
  using Pool = std::multimap<std::size_t, std::shared_ptr<void>>;
  [[nodiscard]] std::shared_ptr<void> pinned(std::size_t bytes);

  DeviceRuntime& runtime_;
  /// Free again when the last handle goes, though copies may be under way: the next use is on the same stream.
  std::shared_ptr<Pool> free_ = std::make_shared<Pool>();
  std::deque<std::pair<std::shared_ptr<const Event>, at::Tensor>> leaving_;
  std::unique_ptr<Stream> copies_;  // last: waits for its work
};

/// A tensor that waits in host memory, so that its own can be freed.
///
/// Threads: one caller.
class HostCopy {
 public:
  HostCopy() = default;
  /// @param stream nullptr: the copy is an operation of LibTorch, from the CPU at once, from a GPU to pinned memory in the order
  /// of the current stream.
  explicit HostCopy(const at::Tensor& tensor, std::shared_ptr<OffloadStream> stream = nullptr);
  /// The tensor on its device again; on the CPU the buffer itself. Knows no gradient.
  [[nodiscard]] at::Tensor on_device() const;

 private:
  at::Tensor host_;
  at::Device device_{at::kCPU};
  struct Away {  // instead of host_
    std::shared_ptr<OffloadStream> stream;
    std::shared_ptr<void> memory;
    at::TensorOptions options;
    std::vector<std::int64_t> sizes, strides;
  };
  std::optional<Away> away_;
};

}  // namespace troupe::detail

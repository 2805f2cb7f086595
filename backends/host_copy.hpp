#pragma once

#include <ATen/core/Tensor.h>

namespace troupe::detail {

/// A tensor that waits in host memory, so that its own can be freed. From a GPU: in pinned memory, copied
/// asynchronously in the order of the current stream. From the CPU: in a buffer of its own.
///
/// Threads: one caller.
class HostCopy {
 public:
  HostCopy() = default;
  explicit HostCopy(const at::Tensor& tensor);
  /// The tensor on its device again; on the CPU the buffer itself. Knows no gradient.
  [[nodiscard]] at::Tensor on_device() const;

 private:
  at::Tensor host_;
  at::Device device_{at::kCPU};
};

}  // namespace troupe::detail

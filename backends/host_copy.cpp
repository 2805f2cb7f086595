#include "host_copy.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

namespace troupe::detail {

HostCopy::HostCopy(const at::Tensor& tensor) : device_(tensor.device()) {
  const at::NoGradGuard no_grad;
  const bool pinned = !device_.is_cpu();
  host_ = at::empty_like(tensor, tensor.options().device(at::kCPU).pinned_memory(pinned));
  host_.copy_(tensor, /*non_blocking=*/pinned);
}

at::Tensor HostCopy::on_device() const {
  const at::NoGradGuard no_grad;
  return device_.is_cpu() ? host_.detach() : host_.to(device_, host_.scalar_type(), /*non_blocking=*/true);
}

}  // namespace troupe::detail

#include "host_copy.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>

namespace troupe::detail {

namespace {

/// Tensors that wait for their copy at once; compute then waits for the oldest, lest they pile up.
constexpr std::size_t max_leaving = 2;

std::size_t bytes_of(const at::Tensor& tensor) { return static_cast<std::size_t>(tensor.numel()) * tensor.element_size(); }

}  // namespace

std::shared_ptr<void> OffloadStream::pinned(std::size_t bytes) {
  std::shared_ptr<void> memory;
  if (const auto found = free_->find(bytes); found != free_->end()) {
    memory = std::move(found->second);
    free_->erase(found);
  } else {
    memory = runtime_.allocate_pinned(bytes);
  }
  auto* data = memory.get();
  return {data, [free = free_, bytes, memory = std::move(memory)](void*) mutable { free->emplace(bytes, std::move(memory)); }};
}

std::shared_ptr<void> OffloadStream::take(const at::Tensor& tensor) {
  auto memory = pinned(bytes_of(tensor));
  copies_->wait(*runtime_.compute_stream().record());
  copies_->copy_async(memory.get(), tensor.data_ptr(), bytes_of(tensor));
  leaving_.emplace_back(copies_->record(), tensor.detach());
  for (; leaving_.size() > max_leaving || (!leaving_.empty() && leaving_.front().first->query()); leaving_.pop_front()) {
    runtime_.compute_stream().wait(*leaving_.front().first);  // whose memory it is next
  }
  return memory;
}

void OffloadStream::give_back(const std::shared_ptr<void>& memory, const at::Tensor& tensor) {
  copies_->wait(*runtime_.compute_stream().record());
  copies_->copy_async(tensor.data_ptr(), memory.get(), bytes_of(tensor));
  runtime_.compute_stream().wait(*copies_->record());
}

HostCopy::HostCopy(const at::Tensor& tensor, std::shared_ptr<OffloadStream> stream) : device_(tensor.device()) {
  const at::NoGradGuard no_grad;
  if (stream && tensor.numel() > 0) {
    const auto dense = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
    auto memory = stream->take(dense);
    away_ = Away{std::move(stream), std::move(memory), dense.options().requires_grad(false), dense.sizes().vec(), dense.strides().vec()};
    return;
  }
  const bool pinned = !device_.is_cpu();
  host_ = at::empty_like(tensor, tensor.options().device(at::kCPU).pinned_memory(pinned));
  host_.copy_(tensor, /*non_blocking=*/pinned);
}

at::Tensor HostCopy::on_device() const {
  const at::NoGradGuard no_grad;
  if (away_) {
    auto tensor = at::empty_strided(away_->sizes, away_->strides, away_->options);
    away_->stream->give_back(away_->memory, tensor);
    return tensor;
  }
  return device_.is_cpu() ? host_.detach() : host_.to(device_, host_.scalar_type(), /*non_blocking=*/true);
}

}  // namespace troupe::detail

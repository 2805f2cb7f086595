#include "accelerator_impl.hpp"
#include "c10d/tensor_buffer.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <array>

namespace troupe {

namespace {

constexpr std::size_t max_dims = 14;

/// A tensor's type and shape as numbers.
struct Shape {
  std::int64_t type = 0;
  std::int64_t dims = 0;
  std::array<std::int64_t, max_dims> sizes{};
  bool operator==(const Shape&) const = default;
};
static_assert(sizeof(Shape) == (2 + max_dims) * sizeof(std::int64_t));

Shape shape_of(const at::Tensor& tensor) {
  Shape shape{.type = static_cast<std::int64_t>(tensor.scalar_type()), .dims = tensor.dim()};
  if (tensor.dim() > static_cast<std::int64_t>(max_dims)) throw Failure{Errc::Unsupported, "collectives take tensors of up to 14 dimensions"};
  std::copy(tensor.sizes().begin(), tensor.sizes().end(), shape.sizes.begin());
  return shape;
}

std::vector<Shape> all_shapes(Communicator& communicator, const at::Tensor& tensor) {
  const auto mine = shape_of(tensor);
  const auto size = static_cast<std::size_t>(communicator.size());
  std::vector<Shape> shapes(size);
  communicator.all_gather({&mine, sizeof mine, DType::I64}, {shapes.data(), size * sizeof mine, DType::I64}).wait().or_throw();
  return shapes;
}

std::string describe(const std::vector<Shape>& shapes) {
  std::string text;
  for (std::size_t r = 0; r < shapes.size(); ++r) {
    const auto& s = shapes[r];
    text += (r ? ", rank " : "rank ") + std::to_string(r) + " has " +
            troupe::describe(static_cast<at::ScalarType>(s.type), {s.sizes.data(), static_cast<std::size_t>(s.dims)});
  }
  return text;
}

}  // namespace

void Accelerator::Impl::check_same_shape(const char* call, const at::Tensor& tensor) {
  const auto shapes = all_shapes(communicator, tensor);
  if (std::all_of(shapes.begin(), shapes.end(), [&](const auto& s) { return s == shapes[0]; })) return;
  throw Failure{Errc::CollectiveMismatch, std::string{call} + ": tensors differ: " + describe(shapes) +
                                              "; pad_across_processes makes one dimension equal"};
}

at::Tensor Accelerator::gather(const at::Tensor& tensor) {
  const at::NoGradGuard no_grad;
  const auto rows = (tensor.dim() == 0 ? tensor.unsqueeze(0) : tensor).detach().contiguous();
  if (num_processes() == 1) return rows;
  impl_->check_same_shape("gather", rows);
  auto sizes = rows.sizes().vec();
  sizes[0] *= num_processes();
  const auto all = at::empty(sizes, rows.options());
  impl_->carrier(rows).all_gather(buffer_of(rows), buffer_of(all)).wait().or_throw();
  return all;
}

at::Tensor Accelerator::gather_for_metrics(const at::Tensor& tensor) {
  auto all = gather(tensor);
  if (num_processes() == 1) return all;
  if (const auto* stream = impl_->padded_stream()) {
    const auto each = all.size(0) / num_processes();
    return impl_->without_padding(all, each, std::min(each, *stream->real_rows()));
  }
  const auto* ending = impl_->ending_loader();
  if (!ending || ending->remainder <= 0 || ending->remainder >= all.size(0)) return all;
  return all.narrow(0, 0, ending->remainder);
}

at::Tensor Accelerator::reduce(const at::Tensor& tensor, ReduceOp op) {
  const at::NoGradGuard no_grad;
  auto result = tensor.detach().clone(at::MemoryFormat::Contiguous);
  if (num_processes() == 1) return result;
  impl_->check_same_shape("reduce", result);
  impl_->carrier(result).all_reduce(buffer_of(result), op).wait().or_throw();
  return result;
}

at::Tensor Accelerator::pad_across_processes(const at::Tensor& tensor, std::int64_t dim, double pad_index, bool pad_first) {
  if (tensor.dim() == 0 || num_processes() == 1) return tensor;
  if (dim < 0 || dim >= tensor.dim()) {
    throw Failure{Errc::InvalidArgument, "pad_across_processes: dim " + std::to_string(dim) + " of a tensor of " +
                                             std::to_string(tensor.dim()) + " dimensions"};
  }
  const at::NoGradGuard no_grad;
  const auto shapes = all_shapes(impl_->communicator, tensor);
  std::int64_t longest = 0;
  for (const auto& shape : shapes) {
    if (shape.dims != tensor.dim()) throw Failure{Errc::CollectiveMismatch, "pad_across_processes: tensors differ: " + describe(shapes)};
    longest = std::max(longest, shape.sizes[static_cast<std::size_t>(dim)]);
  }
  const auto own = tensor.size(dim);
  if (own == longest) return tensor;
  auto sizes = tensor.sizes().vec();
  sizes[static_cast<std::size_t>(dim)] = longest;
  auto padded = at::full(sizes, pad_index, tensor.options().requires_grad(false));
  padded.narrow(dim, pad_first ? longest - own : 0, own).copy_(tensor);
  return padded;
}

at::Tensor Accelerator::broadcast(const at::Tensor& tensor, int from_process) {
  if (from_process < 0 || from_process >= num_processes()) {
    throw Failure{Errc::InvalidArgument, "broadcast: from_process = " + std::to_string(from_process) + ", but there are " +
                                             std::to_string(num_processes()) + " ranks"};
  }
  const at::NoGradGuard no_grad;
  auto result = tensor.detach().clone(at::MemoryFormat::Contiguous);
  if (num_processes() == 1) return result;
  impl_->check_same_shape("broadcast", result);
  impl_->carrier(result).broadcast(buffer_of(result), from_process).wait().or_throw();
  return result;
}

void Accelerator::wait_for_everyone() { impl_->communicator.barrier().wait().or_throw(); }

Scope Accelerator::main_process_first() {
  if (!is_main_process()) {
    wait_for_everyone();
    return Scope{nullptr};
  }
  // A failure here is told again by the group's next collective: destructors must not throw.
  return Scope{[impl = impl_.get()] { (void)impl->communicator.barrier().wait(); }};
}

}  // namespace troupe

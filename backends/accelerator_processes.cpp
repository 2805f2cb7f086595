// Sharing out inputs and agreeing on a flag.
#include "accelerator_impl.hpp"

#include <troupe/errors.hpp>

#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>

namespace troupe {

namespace {

/// Dim 0 of `tensor` in the share, then its last row (or the last of all) until `longest`.
at::Tensor rows(const at::Tensor& tensor, const IndexRange& share, std::int64_t longest) {
  auto own = tensor.narrow(0, share.first, share.count);
  const auto missing = longest - share.count;
  if (missing <= 0) return own;
  const auto last = tensor.narrow(0, share.count > 0 ? share.first + share.count - 1 : tensor.size(0) - 1, 1);
  auto sizes = last.sizes().vec();
  sizes[0] = missing;
  return at::cat({own, last.expand(sizes)});
}

std::int64_t length_of(const at::Tensor& tensor) {
  if (tensor.dim() == 0) throw Failure{Errc::InvalidArgument, "split_between_processes: a scalar tensor has no rows"};
  return tensor.size(0);
}

}  // namespace

std::vector<std::int64_t> Accelerator::split_indices(std::int64_t length, bool apply_padding) const {
  const auto share = split_range(length, num_processes(), process_index());
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < share.count; ++i) indices.push_back(share.first + i);
  if (!apply_padding) return indices;
  const auto last = share.count > 0 ? indices.back() : length - 1;
  indices.resize(static_cast<std::size_t>(longest_split(length, num_processes())), last);
  return indices;
}

at::Tensor Accelerator::split_between_processes(const at::Tensor& inputs, bool apply_padding) const {
  const auto length = length_of(inputs);
  return rows(inputs, split_range(length, num_processes(), process_index()), apply_padding ? longest_split(length, num_processes()) : 0);
}

std::map<std::string, at::Tensor> Accelerator::split_between_processes(const std::map<std::string, at::Tensor>& inputs,
                                                                       bool apply_padding) const {
  std::map<std::string, at::Tensor> share;
  for (const auto& [name, tensor] : inputs) {
    const auto& [first_name, first] = *inputs.begin();
    if (length_of(tensor) != length_of(first)) {
      throw Failure{Errc::InvalidArgument, "split_between_processes: " + name + " has " + std::to_string(tensor.size(0)) + " rows, " +
                                               first_name + " has " + std::to_string(first.size(0)) + "; all values must be equally long"};
    }
    share.emplace(name, split_between_processes(tensor, apply_padding));
  }
  return share;
}

void Accelerator::set_trigger() noexcept { impl_->trigger = true; }

bool Accelerator::check_trigger() {
  std::uint8_t raised = std::exchange(impl_->trigger, false);
  if (num_processes() > 1) impl_->communicator.all_reduce({&raised, 1, DType::U8}, ReduceOp::Max).wait().or_throw();
  return raised;
}

int Accelerator::local_process_index() const noexcept { return impl_->context.local_rank(); }

Profiler Accelerator::profile(ProfileKwargs kwargs) const { return Profiler{std::move(kwargs), process_index()}; }

Scope Accelerator::autocast(const AutocastKwargs& kwargs) {
  const bool cache = at::autocast::is_autocast_cache_enabled();
  const auto set_cache = [kwargs, cache] {
    if (kwargs.cache_enabled) at::autocast::set_autocast_cache_enabled(cache);
  };
  if (kwargs.cache_enabled) at::autocast::set_autocast_cache_enabled(*kwargs.cache_enabled);
  if (kwargs.enabled) {
    // Scopes end in the reverse order: autocast first.
    return Scope{[inner = std::make_shared<Scope>(autocast()), set_cache]() mutable {
      inner.reset();
      set_cache();
    }};
  }
  const bool enabled = at::autocast::is_autocast_enabled(at::kCPU);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  return Scope{[enabled, set_cache] {
    at::autocast::set_autocast_enabled(at::kCPU, enabled);
    set_cache();
  }};
}

void Accelerator::free_memory() {
  auto& i = *impl_;
  if (i.saver) i.saver->wait();
  for (auto* optimizer : i.optimizers) {
    optimizer->set_gate(nullptr);
    optimizer->set_after_step(nullptr);
  }
  i.models.clear();
  i.added.clear();
  i.optimizers.clear();
  i.schedulers.clear();
  i.loaders.clear();
  i.streams.clear();
  i.waiting_positions.clear();
  i.asked_order.clear();
  i.equal.clear();
  i.trigger = false;
  i.forget_window();
  i.forget_boundary();
}

}  // namespace troupe

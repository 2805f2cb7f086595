#include "ddp.hpp"
#include "gradient_memory.hpp"
#include "c10d/tensor_buffer.hpp"

#include <troupe/errors.hpp>
#include <troupe/parameter_source.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstring>
#include <sstream>

// Hooks on gradients are no stable interface of LibTorch.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "tested with LibTorch 2.11 only");

namespace troupe::detail {

namespace {

/// Below this a copy into the bucket costs less than a collective of its own.
constexpr std::size_t in_place_bytes = std::size_t{1} << 20;
/// Parameters of a bucket begin at cache lines.
constexpr std::int64_t alignment_bytes = 64;

/// Lines "name dtype shape" of every parameter, to compare over ranks.
std::string signature(const NamedTensors& params) {
  std::ostringstream text;
  for (const auto& [name, tensor] : params) text << name << " " << describe(tensor.scalar_type(), tensor.sizes()) << (is_deferred(tensor) ? " deferred" : "") << "\n";
  return text.str();
}

void check_same_on_all_ranks(Communicator& communicator, const NamedTensors& params) {
  const auto mine = signature(params);
  const auto all = all_gather_bytes(communicator, mine);
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    std::istringstream first{all[0]}, other{all[rank]};
    std::string a, b;
    do {
      a = b = "no such parameter";
      std::getline(first, a);
      std::getline(other, b);
    } while (a == b);
    throw Failure{Errc::CollectiveMismatch, "prepare: the model differs over ranks: rank 0 has \"" + a + "\" where rank " +
                                                std::to_string(rank) + " has \"" + b + "\""};
  }
}

}  // namespace

void make_equal_on_all_ranks(Communicator& communicator, const NamedTensors& params, const NamedTensors& buffers) {
  const at::NoGradGuard no_grad;
  check_same_on_all_ranks(communicator, params);
  std::vector<at::Tensor> state;
  for (const auto* list : {&params, &buffers}) {
    for (const auto& [name, tensor] : *list) {
      if (!is_deferred(tensor)) state.push_back(tensor);
    }
  }
  broadcast_from_zero(communicator, state);
}

struct DdpEngine::Hook final : torch::autograd::PostAccumulateGradHook {
  Hook(DdpEngine& e, std::size_t p) : engine(e), param(p) {}
  void operator()(const torch::autograd::Variable&) override { engine.on_gradient(param); }
  DdpEngine& engine;
  std::size_t param;
};

DdpEngine::DdpEngine(Communicator& communicator, NamedTensors params, NamedTensors buffers, const DistributedDataParallelKwargs& options)
    : communicator_(communicator), options_(options) {
  const at::NoGradGuard no_grad;
  make_equal_on_all_ranks(communicator, params, buffers);
  std::erase_if(params, [](const auto& p) { return !p.second.requires_grad(); });
  for (const auto& [name, tensor] : params) {
    if (torch::autograd::impl::post_acc_grad_hooks(tensor)) {
      throw Failure{Errc::InvalidArgument, "prepare: parameter " + name + " has a gradient hook already: was its model prepared before?"};
    }
    auto& param = params_.emplace_back();
    param.name = name;
    param.tensor = tensor;
  }
  const auto cap = static_cast<std::size_t>(options.bucket_cap_mb * 1024 * 1024);
  for (auto& plan : plan_buckets(params, cap, in_place_bytes)) add_bucket(std::move(plan));
  std::vector<std::size_t> sizes;
  for (const auto& bucket : buckets_) {
    const auto& first = params_[bucket.plan.params.front()].tensor;
    if (bucket.plan.in_place) sizes.push_back(static_cast<std::size_t>(first.numel()) * first.element_size());
  }
  if (!sizes.empty()) gradient_memory_ = std::make_unique<GradientMemory>(communicator, sizes);

  if (options.broadcast_buffers && !buffers.empty()) {
    std::size_t bytes = 0;
    for (const auto& [name, tensor] : buffers) {
      buffers_.push_back(tensor);
      bytes += static_cast<std::size_t>(tensor.numel()) * tensor.element_size();
    }
    buffer_bytes_ = communicator_tensor(communicator, static_cast<std::int64_t>(bytes), at::kByte);
  }
  for (std::size_t i = 0; i < params_.size(); ++i) {
    torch::autograd::impl::set_post_acc_grad_hooks(params_[i].tensor, std::make_unique<Hook>(*this, i));
  }
}

DdpEngine::~DdpEngine() {
  for (const auto& param : params_) torch::autograd::impl::set_post_acc_grad_hooks(param.tensor, nullptr);
}

void DdpEngine::add_bucket(BucketPlan plan) {
  auto& bucket = buckets_.emplace_back();
  bucket.plan = std::move(plan);
  const auto index = buckets_.size() - 1;
  for (const auto i : bucket.plan.params) params_[i].bucket = index;
  const auto type = params_[bucket.plan.params.front()].tensor.scalar_type();
  BucketShape shape;
  shape.type = type;
  const auto add_segment = [&shape](std::int64_t at, const at::Tensor& t) {
    shape.segments.push_back({at, t.numel(), t.dim() ? t.size(0) : 1, static_cast<int>(t.dim())});
  };
  if (bucket.plan.in_place) {
    const auto& tensor = params_[bucket.plan.params.front()].tensor;
    add_segment(0, tensor);
    shape.numel = tensor.numel();
    bucket.reduction = make_reduction(communicator_, options_, std::move(shape), index);
    return;
  }
  const auto step = alignment_bytes / static_cast<std::int64_t>(c10::elementSize(type));
  const auto padded = [step](std::int64_t n) { return (n + step - 1) / step * step; };
  std::int64_t total = 0;
  for (const auto i : bucket.plan.params) total += padded(params_[i].tensor.numel());
  bucket.flat = communicator_tensor(communicator_, total, type);
  std::int64_t at = 0;
  for (const auto i : bucket.plan.params) {
    auto& param = params_[i];
    const auto& t = param.tensor;
    // Autograd wants gradients laid out as their parameter.
    param.view = t.is_non_overlapping_and_dense() ? bucket.flat.as_strided(t.sizes(), t.strides(), at)
                                                  : bucket.flat.narrow(0, at, t.numel()).view(t.sizes());
    add_segment(at, t);
    at += padded(t.numel());
  }
  shape.numel = total;
  bucket.reduction = make_reduction(communicator_, options_, std::move(shape), index);
}

void DdpEngine::begin(const Pass& pass) {
  pass_ = pass;
  next_ = done_ = num_gradients_ = 0;
  for (auto& bucket : buckets_) bucket.num_ready = 0;
  for (auto& param : params_) param.ready = param.zeroed = false;
  active_ = true;
  start_buffers();
}

void DdpEngine::on_gradient(std::size_t param) {
  if (!active_) {
    local_ = true;
    return;
  }
  ++num_gradients_;
  if (params_[param].ready) {
    throw Failure{Errc::Unsupported, "backward: parameter " + params_[param].name +
                                         " got a second gradient in one backward; reentrant backward is not supported with several ranks"};
  }
  mark_ready(param);
  if (pass_.hold_back) return;
  launch_ready();
  if (done_ < next_ && buckets_[done_].reduction->poll()) ++done_;  // keeps earlier buckets moving
}

void DdpEngine::mark_ready(std::size_t index) {
  auto& param = params_[index];
  param.ready = true;
  auto& bucket = buckets_[param.bucket];
  ++bucket.num_ready;
  auto& grad = param.tensor.mutable_grad();
  if (grad.is_sparse()) throw Failure{Errc::Unsupported, "backward: the gradient of " + param.name + " is sparse; use a dense embedding"};
  const at::NoGradGuard no_grad;
  if (bucket.plan.in_place) {
    // Two parameters' gradients may be views of one storage: reducing both in place would mix them. One owner is
    // `grad`; a second is the tensor it was stolen from, which lives until the hook returns.
    if (!grad.is_contiguous() || grad.storage().use_count() > 2) grad = grad.clone(at::MemoryFormat::Contiguous);
    bucket.flat = grad;
    return;
  }
  if (grad.data_ptr() == param.view.data_ptr()) return;
  if (grad.strides() == param.view.strides() && grad.is_non_overlapping_and_dense()) {
    std::memcpy(param.view.data_ptr(), grad.data_ptr(), static_cast<std::size_t>(grad.numel()) * grad.element_size());
  } else {
    param.view.copy_(grad);
  }
  grad = param.view;
}

void DdpEngine::launch_ready() {
  for (; next_ < buckets_.size(); ++next_) {
    auto& bucket = buckets_[next_];
    if (bucket.num_ready < bucket.plan.params.size()) return;
    bucket.reduction->start(bucket.flat);
  }
}

void DdpEngine::complete_unused() {
  const at::NoGradGuard no_grad;
  std::string missing;
  for (std::size_t i = 0; i < params_.size(); ++i) {
    auto& param = params_[i];
    if (param.ready) continue;
    auto& grad = param.tensor.mutable_grad();
    if (!grad.defined()) {  // else it has one from an earlier batch of the window
      missing += (missing.empty() ? "" : ", ") + param.name;
      if (!options_.find_unused_parameters) continue;
      param.zeroed = true;
      if (buckets_[param.bucket].plan.in_place) {
        grad = at::zeros_like(param.tensor);
      } else {
        param.view.zero_();
        grad = param.view;
      }
    }
    mark_ready(i);
  }
  if (missing.empty() || options_.find_unused_parameters) return;
  const auto text = "backward: rank " + std::to_string(communicator_.rank()) + " has no gradient for " + missing +
                    ": the loss does not depend on all parameters; set ddp.find_unused_parameters";
  communicator_.abort(text);  // peers wait for buckets that will not come
  throw Failure{Errc::InvalidArgument, text};
}

std::vector<std::uint8_t> DdpEngine::agree_on_unused() {
  std::vector<std::uint8_t> used(params_.size());
  for (std::size_t i = 0; i < params_.size(); ++i) used[i] = !params_[i].zeroed;
  communicator_.all_reduce({used.data(), used.size(), DType::U8}, ReduceOp::Max).wait().or_throw();
  return used;
}

void DdpEngine::drop_globally_unused() {
  const auto used = agree_on_unused();
  for (std::size_t i = 0; i < params_.size(); ++i) {
    // As in one process, a parameter that no rank used has no gradient: decay and momentum must not move it.
    if (!used[i]) params_[i].tensor.mutable_grad().reset();
  }
}

void DdpEngine::reduce_buckets() {
  launch_ready();
  for (auto& bucket : buckets_) bucket.reduction->proceed();
  for (auto& bucket : buckets_) {
    bucket.reduction->finish();
    if (bucket.plan.in_place) bucket.flat.reset();
  }
}

bool DdpEngine::idle() const {
  if (!pass_.may_be_idle || options_.find_unused_parameters || num_gradients_ > 0) return false;
  const auto has_gradient = [](const Param& p) { return p.tensor.grad().defined(); };
  return !local_ || std::none_of(params_.begin(), params_.end(), has_gradient);
}

void DdpEngine::finish() {
  RECORD_USER_SCOPE("DdpEngine::finish");
  const bool nothing_to_do = idle();
  if (!nothing_to_do) complete_unused();
  active_ = false;
  if (!nothing_to_do) {
    reduce_buckets();
    local_ = false;
  }
  finish_buffers();
  if (options_.find_unused_parameters) drop_globally_unused();
}

void DdpEngine::shadow(const Pass& pass) {
  const at::NoGradGuard no_grad;
  begin(pass);
  active_ = false;
  for (auto& bucket : buckets_) {
    const auto& first = params_[bucket.plan.params.front()].tensor;
    if (bucket.plan.in_place) bucket.flat = at::zeros({first.numel()}, first.options().requires_grad(false));
    else bucket.flat.zero_();
    bucket.num_ready = bucket.plan.params.size();
  }
  for (auto& param : params_) param.zeroed = true;
  reduce_buckets();
  finish_buffers();
  if (options_.find_unused_parameters) (void)agree_on_unused();
}

void DdpEngine::cancel() noexcept { active_ = false; }

void DdpEngine::start_buffers() {
  if (buffers_.empty()) return;
  auto* at = static_cast<char*>(buffer_bytes_.data_ptr());
  if (communicator_.rank() == pass_.buffer_root) {
    for (const auto& tensor : buffers_) {
      const auto image = tensor.contiguous();
      const auto bytes = static_cast<std::size_t>(image.numel()) * image.element_size();
      std::memcpy(at, image.data_ptr(), bytes);
      at += bytes;
    }
  }
  buffer_work_ = communicator_.broadcast(buffer_of(buffer_bytes_), pass_.buffer_root);
}

void DdpEngine::finish_buffers() {
  if (buffers_.empty()) return;
  buffer_work_.wait().or_throw();
  buffer_work_ = Work{};
  if (communicator_.rank() == pass_.buffer_root) return;
  const at::NoGradGuard no_grad;
  const auto* at = static_cast<const char*>(buffer_bytes_.data_ptr());
  for (auto& tensor : buffers_) {
    auto image = tensor.contiguous();
    const auto bytes = static_cast<std::size_t>(image.numel()) * image.element_size();
    std::memcpy(image.data_ptr(), at, bytes);
    if (!image.is_same(tensor)) tensor.copy_(image);
    at += bytes;
  }
}

}  // namespace troupe::detail

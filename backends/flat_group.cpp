#include "flat_group.hpp"
#include "c10d/tensor_buffer.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace troupe::detail {

namespace {

/// Parameters and shards begin at multiples of this many elements.
constexpr std::int64_t alignment = 16;

std::int64_t padded(std::int64_t n) { return (n + alignment - 1) / alignment * alignment; }

bool is_16_bit(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

std::size_t bytes_of(const at::Tensor& tensor) { return static_cast<std::size_t>(tensor.numel()) * tensor.element_size(); }

}  // namespace

at::ScalarType scalar_type_of(DType type) {
  switch (type) {
    case DType::F32: return at::kFloat;
    case DType::BF16: return at::kBFloat16;
    case DType::F16: return at::kHalf;
    default: throw Failure{Errc::InvalidConfig, "sharding: an element type is " + std::string{name(type)} + ", but it must be F32, BF16 or F16"};
  }
}

std::shared_ptr<void> BufferPool::take(std::size_t bytes) {
  Slot slot;
  {
    const std::scoped_lock lock{slots_->mutex};
    auto best = slots_->free.end();
    for (auto it = slots_->free.begin(); it != slots_->free.end(); ++it) {
      if (it->bytes >= bytes && it->bytes <= bytes + bytes / 8 && (best == slots_->free.end() || it->bytes < best->bytes)) best = it;
    }
    if (best != slots_->free.end()) {
      slot = std::move(*best);
      slots_->free.erase(best);
    }
  }
  if (!slot.memory) slot = {communicator_.allocate(bytes), bytes};
  slot.charge = account_.charge(MemoryCategory::Gathered, static_cast<std::int64_t>(slot.bytes), MemoryAccount::Source::Elsewhere);
  auto* data = slot.memory.get();
  return {data, [slots = slots_, slot = std::move(slot)](void*) mutable {
            slot.charge = {};
            const std::scoped_lock lock{slots->mutex};
            slots->free.push_back(std::move(slot));
          }};
}

void FlatGroup::zero(const at::Tensor& flat, std::int64_t begin, std::int64_t end) {
  if (begin >= end) return;
  const auto size = static_cast<std::int64_t>(flat.element_size());
  world_.device.compute_stream().fill_async(static_cast<char*>(flat.data_ptr()) + begin * size, 0, static_cast<std::size_t>((end - begin) * size));
}

/// Copies (and converts) `from` into `to`, both of one shape. A plain copy of equal layouts skips the dispatcher.
void FlatGroup::copy_into(const at::Tensor& to, const at::Tensor& from) {
  if (to.scalar_type() == from.scalar_type() && from.is_contiguous()) {
    world_.device.compute_stream().copy_async(to.data_ptr(), from.data_ptr(), bytes_of(from));
  } else {
    to.copy_(from);
  }
}

FlatGroup::FlatGroup(ShardWorld& world, GroupPlan plan, const NamedTensors& params) : world_(world), plan_(std::move(plan)) {
  const at::NoGradGuard no_grad;
  const auto type = params[plan_.params.front()].second.scalar_type();
  master_type_ = plan_.trained && is_16_bit(type) ? at::kFloat : type;
  compute_type_ = world.options.param_dtype && at::isFloatingType(type) ? scalar_type_of(*world.options.param_dtype) : type;
  offloaded_ = plan_.trained && world.copies;
  const auto options = at::TensorOptions().dtype(compute_type_).device(world.torch_device);
  empty_ = at::empty({0}, options);
  lay_out(params);

  const auto size = world_.gather.size();
  if (plan_.freed) {
    full_ = at::empty({shard_numel_ * size}, options);
  } else {
    full_ = communicator_tensor(world_.gather, shard_numel_ * size, compute_type_, world_.torch_device);
  }
  make_masters();
  charge_resident();
  for (auto& p : params_) p.view = full_.narrow(0, p.offset, p.numel).view(p.sizes);
  fill_masters();
  if (plan_.freed) {
    detach();
    for (auto& p : params_) p.tensor.set_data(empty_);
    return;
  }
  for (auto& p : params_) {
    if (is_deferred(p.tensor)) {
      world_.deferred->read(p.name, 0, p.view.view({-1}));
    } else {
      p.view.copy_(p.tensor.detach());
    }
  }
  state_ = State::Whole;
  stale_ = false;
  show_parameters();
}

void FlatGroup::make_masters() {
  const bool apart = compute_type_ != master_type_;
  const auto part = full_.narrow(0, shard_numel_ * world_.gather.rank(), shard_numel_);
  if (plan_.freed && world_.params_file) {
    disk_ = std::make_shared<DiskShard>(world_.params_file, shard_numel_, master_type_, at::Tensor{});
  } else if (apart && world_.masters_file) {
    disk_ = std::make_shared<DiskShard>(world_.masters_file, shard_numel_, master_type_,
                                        plan_.freed ? communicator_tensor(world_.gather, shard_numel_, compute_type_, world_.torch_device) : part);
  }
  if (disk_) {
    master_ = disk_->tensor();
  } else if (offloaded_) {
    master_ = tensor_over(world_.device.allocate_pinned(static_cast<std::size_t>(shard_numel_) * c10::elementSize(master_type_)), shard_numel_, master_type_);
    master_.zero_();
  } else if (!plan_.freed && !apart) {
    master_ = part;
  } else {
    master_ = communicator_tensor(world_.gather, shard_numel_, master_type_, world_.torch_device);
  }
}

void FlatGroup::charge_resident() {
  const auto bytes = [](const at::Tensor& t) { return t.numel() * static_cast<std::int64_t>(t.element_size()); };
  const auto charge = [this](MemoryCategory category, std::int64_t n) { return world_.account.charge(category, n, MemoryAccount::Source::Elsewhere); };
  const bool apart = compute_type_ != master_type_;
  if (!plan_.freed) parameters_charge_ = charge(MemoryCategory::Parameters, bytes(full_));
  // A master of another type than what is computed with is the optimizer's; of the same type it is the parameter.
  if (disk_) {
    if (plan_.freed && disk_->copy().defined()) masters_charge_ = charge(MemoryCategory::Parameters, bytes(disk_->copy()));
    return;
  }
  if (offloaded_) masters_charge_ = charge(MemoryCategory::Offloaded, bytes(master_));
  else if (plan_.freed || apart) masters_charge_ = charge(apart && !plan_.freed ? MemoryCategory::Optimizer : MemoryCategory::Parameters, bytes(master_));
}

FlatGroup::~FlatGroup() {
  if (reduce_work_.poll()) return;
  (void)reduce_work_.wait();
}

void FlatGroup::lay_out(const NamedTensors& params) {
  std::int64_t total = 0;
  for (const auto i : plan_.params) {
    auto& p = params_.emplace_back();
    p.name = params[i].first;
    p.tensor = params[i].second;
    p.offset = total;
    p.numel = p.tensor.numel();
    p.sizes = p.tensor.sizes().vec();
    total += padded(p.numel);
  }
  const auto size = world_.gather.size();
  shard_numel_ = padded((total + size - 1) / size);
}

void FlatGroup::fill_masters() {
  const auto begin = shard_numel_ * world_.gather.rank();
  if (disk_) {
    disk_->enter_empty();
    master_.zero_();
  }
  for (auto& p : params_) {
    const auto from = std::max(begin, p.offset);
    const auto to = std::min(begin + shard_numel_, p.offset + p.numel);
    const auto count = std::max<std::int64_t>(0, to - from);
    p.piece_offset = count ? from - begin : 0;
    p.piece = master_.narrow(0, p.piece_offset, count);
    if (!count) continue;
    if (is_deferred(p.tensor)) {
      world_.deferred->read(p.name, from - p.offset, p.piece);
    } else {
      p.piece.copy_(p.tensor.detach().reshape({-1}).narrow(0, from - p.offset, count));
    }
  }
  if (disk_) disk_->leave(true);
}

void FlatGroup::attach(std::shared_ptr<void> memory) {
  auto* storage = full_.storage().unsafeGetStorageImpl();
  auto* data = memory.get();
  auto* handle = new std::shared_ptr<void>(std::move(memory));
  storage->set_data_ptr_noswap(at::DataPtr{data, handle, [](void* p) { delete static_cast<std::shared_ptr<void>*>(p); }, world_.torch_device});
  storage->set_nbytes(static_cast<std::size_t>(full_.numel()) * full_.element_size());
}

void FlatGroup::detach() {
  auto* storage = full_.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(at::DataPtr{nullptr, world_.torch_device});
  storage->set_nbytes(std::size_t{0});
}

void FlatGroup::show_parameters() {
  for (auto& p : params_) p.tensor.set_data(p.view);
}

void FlatGroup::start_gather() {
  if (state_ == State::Reading || state_ == State::Gathering || (state_ == State::Whole && !stale_)) return;
  if (disk_ && !disk_->copy().defined()) {
    disk_->start_enter();
    state_ = State::Reading;
    return;
  }
  post_gather();
}

void FlatGroup::post_gather() {
  const at::NoGradGuard no_grad;
  if (state_ != State::Whole) attach(world_.pool.take(static_cast<std::size_t>(full_.numel()) * full_.element_size()));
  const auto part = full_.narrow(0, shard_numel_ * world_.gather.rank(), shard_numel_);
  auto source = part;
  if (state_ == State::Reading) {
    with_masters(*this, Masters::Read, [&] { part.copy_(master_); });
  } else if (disk_) {
    source = disk_->copy();
  } else if (offloaded_) {
    upload_masters(part);
  } else if (compute_type_ == master_type_) {
    source = master_;
  } else {
    part.copy_(master_);
  }
  world_.gather.set_label(plan_.label);
  gather_work_ = world_.gather.all_gather(buffer_of(source), buffer_of(full_));
  state_ = State::Gathering;
}

/// The optimizer changes masters only after gradients have landed, on the same stream: then these copies are done.
void FlatGroup::upload_masters(const at::Tensor& part) {
  auto& compute = world_.device.compute_stream();
  const auto to = compute_type_ == master_type_ ? part : pooled(shard_numel_, master_type_);
  world_.copies->wait(*compute.record());
  world_.copies->copy_async(to.data_ptr(), master_.data_ptr(), bytes_of(master_));
  compute.wait(*world_.copies->record());
  if (!to.is_same(part)) part.copy_(to);
}

void FlatGroup::finish_gather() {
  start_gather();
  if (state_ == State::Whole) return;
  if (state_ == State::Reading) post_gather();
  world_.in_flight.after(std::move(gather_work_));
  state_ = State::Whole;
  stale_ = false;
  if (plan_.freed) show_parameters();
}

void FlatGroup::release() {
  if (!plan_.freed || state_ == State::Released) return;
  if (state_ == State::Reading) {
    disk_->leave(false);
    state_ = State::Released;
    return;
  }
  if (state_ == State::Gathering) gather_work_ = Work{};  // waits
  for (auto& p : params_) p.tensor.set_data(empty_);
  detach();
  state_ = State::Released;
  stale_ = true;
}

at::Tensor FlatGroup::pooled(std::int64_t numel, at::ScalarType type) {
  return tensor_over(world_.pool.take(static_cast<std::size_t>(numel) * c10::elementSize(type)), numel, type, world_.torch_device);
}

void FlatGroup::begin_backward() {
  num_taken_ = 0;
  for (auto& p : params_) p.taken = false;
}

void FlatGroup::take_buffer() {
  if (grads_.defined()) return;
  if (kept_.defined()) {
    grads_ = kept_;
    return;
  }
  grads_ = pooled(full_.numel(), compute_type_);
  for (std::size_t i = 0; i < params_.size(); ++i) {  // what lies between parameters is summed, too
    zero(grads_, params_[i].offset + params_[i].numel, i + 1 < params_.size() ? params_[i + 1].offset : grads_.numel());
  }
}

bool FlatGroup::take_gradient(std::size_t index) {
  auto& p = params_[index];
  if (p.taken) {
    throw Failure{Errc::Unsupported, "backward: parameter " + p.name + " got a second gradient in one backward; reentrant backward is not supported here"};
  }
  auto& grad = p.tensor.mutable_grad();
  if (grad.is_sparse()) throw Failure{Errc::Unsupported, "backward: the gradient of " + p.name + " is sparse; use a dense embedding"};
  const at::NoGradGuard no_grad;
  take_buffer();
  const auto into = grads_.narrow(0, p.offset, p.numel).view(p.sizes);
  if (kept_.defined()) {
    into.add_(grad);
  } else {
    copy_into(into, grad);
  }
  grad.reset();
  p.taken = p.used = true;
  return ++num_taken_ == params_.size();
}

void FlatGroup::keep_gradient(std::size_t index) {
  auto& p = params_[index];
  p.used = true;
  if (!is_16_bit(compute_type_)) return;  // autograd adds up in fp32 where the gradient lies
  const at::NoGradGuard no_grad;
  if (!kept_.defined()) kept_ = at::zeros({full_.numel()}, full_.options().dtype(master_type_));
  auto& grad = p.tensor.mutable_grad();
  kept_.narrow(0, p.offset, p.numel).view(p.sizes).add_(grad);
  grad.reset();
}

void FlatGroup::start_reduce() {
  const at::NoGradGuard no_grad;
  land();
  take_buffer();
  for (std::size_t i = 0; i < params_.size(); ++i) {
    auto& p = params_[i];
    if (p.taken) continue;
    if (p.tensor.grad().defined()) {  // of an earlier batch of the window
      take_gradient(i);
    } else if (!kept_.defined()) {
      zero(grads_, p.offset, p.offset + p.numel);
    }
  }
  if (!world_.reduce.widens() && grads_.scalar_type() != master_type_) {
    const auto wide = pooled(grads_.numel(), master_type_);
    wide.copy_(grads_);
    grads_ = wide;
  }
  adds_ = std::any_of(params_.begin(), params_.end(), [](const auto& p) { return p.piece.grad().defined(); });
  if (!grad_shard_.defined()) {
    const auto bytes = static_cast<std::size_t>(shard_numel_) * c10::elementSize(master_type_);
    grad_shard_ = offloaded_ ? tensor_over(world_.device.allocate_pinned(bytes), shard_numel_, master_type_)
                             : communicator_tensor(world_.reduce, shard_numel_, master_type_, world_.torch_device);
    gradients_charge_ = world_.account.charge(offloaded_ ? MemoryCategory::Offloaded : MemoryCategory::Gradients, static_cast<std::int64_t>(bytes),
                                              MemoryAccount::Source::Elsewhere);
  }
  incoming_ = adds_ || offloaded_ ? pooled(shard_numel_, master_type_) : grad_shard_;
  world_.reduce.set_label(plan_.label);
  reduce_work_ = world_.reduce.reduce_scatter(buffer_of(grads_), buffer_of(incoming_), ReduceOp::Mean);
  reducing_ = true;
}

void FlatGroup::finish_reduce() {
  if (!reducing_) return;
  const at::NoGradGuard no_grad;
  world_.in_flight.after(std::move(reduce_work_));
  reducing_ = false;
  grads_.reset();
  kept_.reset();
  if (world_.replicas) {
    world_.replicas->set_label(plan_.label);
    world_.in_flight.after(world_.replicas->all_reduce(buffer_of(incoming_), ReduceOp::Mean));
  }
  if (world_.options.reduce_dtype && *world_.options.reduce_dtype != DType::F32) {
    incoming_.copy_(incoming_.to(scalar_type_of(*world_.options.reduce_dtype)));
  }
  if (!offloaded_) return add_incoming(std::exchange(incoming_, {}));
  if (adds_ && !landing_.defined()) landing_ = tensor_over(world_.device.allocate_pinned(bytes_of(grad_shard_)), shard_numel_, master_type_);
  world_.copies->wait(*world_.device.compute_stream().record());
  world_.copies->copy_async((adds_ ? landing_ : grad_shard_).data_ptr(), incoming_.data_ptr(), bytes_of(grad_shard_));
  landed_ = world_.copies->record();
}

void FlatGroup::land() {
  if (!landed_) return;
  const at::NoGradGuard no_grad;
  std::exchange(landed_, nullptr)->synchronize();
  incoming_.reset();
  add_incoming(adds_ ? landing_ : grad_shard_);
}

/// Both lie where the optimizer is.
void FlatGroup::add_incoming(const at::Tensor& incoming) {
  if (!incoming.is_same(grad_shard_)) {
    for (const auto& p : params_) {
      if (!p.piece.grad().defined()) grad_shard_.narrow(0, p.piece_offset, p.piece.numel()).zero_();
    }
    grad_shard_.add_(incoming);
  }
  // Shown at once, so that the next backward of the window adds.
  for (auto& p : params_) p.piece.mutable_grad() = grad_shard_.narrow(0, p.piece_offset, p.piece.numel());
}

void FlatGroup::show_gradients(const std::vector<bool>& used) {
  for (std::size_t i = 0; i < params_.size(); ++i) {
    // As in one process, a parameter that no rank used has no gradient: decay and momentum must not move it.
    if (!used[i]) params_[i].piece.mutable_grad().reset();
    params_[i].used = false;
  }
}

void FlatGroup::forget_backward() noexcept {
  reduce_work_ = Work{};  // waits
  reducing_ = false;
  landed_.reset();
  grads_.reset();
  kept_.reset();
  incoming_.reset();
  num_taken_ = 0;
  for (auto& p : params_) {
    p.taken = p.used = false;
    p.tensor.mutable_grad().reset();
  }
}

std::vector<at::Tensor> FlatGroup::assemble(const std::vector<at::Tensor>& pieces) {
  const at::NoGradGuard no_grad;
  const auto flat = pooled(shard_numel_ * world_.gather.size(), master_type_);
  const auto part = flat.narrow(0, shard_numel_ * world_.gather.rank(), shard_numel_);
  part.zero_();
  with_masters(*this, Masters::Read, [&] {
    for (std::size_t i = 0; i < params_.size(); ++i) {
      if (pieces[i].defined()) part.narrow(0, params_[i].piece_offset, params_[i].piece.numel()).copy_(pieces[i]);
    }
  });
  world_.gather.all_gather(buffer_of(part), buffer_of(flat)).wait().or_throw();
  std::vector<at::Tensor> whole;
  for (const auto& p : params_) whole.push_back(flat.narrow(0, p.offset, p.numel).clone().view(p.sizes));
  return whole;
}

std::int64_t FlatGroup::piece_begin(std::size_t index) const {
  return std::max<std::int64_t>(0, shard_numel_ * world_.gather.rank() - params_[index].offset);
}

}  // namespace troupe::detail

#include "shard_engine.hpp"
#include "c10d/tensor_buffer.hpp"
#include "host_copy.hpp"

#include <troupe/checked_communicator.hpp>
#include <troupe/errors.hpp>
#include <troupe/unit.hpp>

#include <ATen/core/grad_mode.h>
#include <c10/util/accumulate.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <iostream>

// Hooks on gradients are no stable interface of LibTorch.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "tested with LibTorch 2.11 only");

namespace troupe::detail {

namespace {

/// Reductions under way at once; each holds a unit's gradients, beside those of the unit whose backward runs.
constexpr std::size_t max_reductions = 1;

int shard_group_size(const Communicator& communicator, const ShardingOptions& options) {
  const int size = options.shard_group_size ? options.shard_group_size : communicator.size();
  if (size < 1 || communicator.size() % size != 0) {
    throw Failure{Errc::InvalidConfig, "sharding: shard_group_size = " + std::to_string(size) + " does not divide the " +
                                           std::to_string(communicator.size()) + " ranks"};
  }
  return size;
}

}  // namespace

struct ShardEngine::UnitState final : UnitHooks {
  UnitState(ShardEngine& e, const UnitPlan& p) : engine(e), plan(p), root(p.name.empty()) {
    for (const auto g : plan.groups) {
      auto* group = engine.groups_[g].get();
      groups.push_back(group);
      has_frozen |= group->plan().freed && !group->plan().trained;
    }
  }
  void pre_forward() override { engine.pre_forward(*this); }
  at::Tensor on_input(const at::Tensor& input) override {
    const auto& type = engine.options_.param_dtype;
    return type && input.defined() && input.is_floating_point() ? input.to(scalar_type_of(*type)) : input;
  }
  void post_forward() override { engine.post_forward(*this); }
  void on_output(const at::Tensor& output) override {
    leads_back = true;
    output.register_hook([this](const at::Tensor&) { engine.pre_backward(*this); });
  }
  void start_gather() {
    for (auto* group : groups) group->start_gather();
  }
  void release() {
    for (auto* group : groups) group->release();
  }
  /// Whether its trained parameters that are freed have all got their gradients.
  [[nodiscard]] bool trained_done() const {
    return std::all_of(groups.begin(), groups.end(),
                       [](const auto* group) { return !group->plan().freed || !group->plan().trained || group->complete() || group->reducing(); });
  }
  [[nodiscard]] bool contains(const UnitState& other) const { return root || other.plan.name.starts_with(plan.name + "."); }

  ShardEngine& engine;
  const UnitPlan& plan;
  bool root;
  bool has_frozen = false;
  bool in_backward = false;
  bool leads_back = false;  // backward will come to it: not so for a frozen embedding
  std::vector<FlatGroup*> groups;
  UnitState* next = nullptr;  // entered after this one in the last forward
  UnitState* previous = nullptr;
};

struct ShardEngine::Hook final : torch::autograd::PostAccumulateGradHook {
  Hook(ShardEngine& e, Place p) : engine(e), place(p) {}
  void operator()(const torch::autograd::Variable&) override { engine.on_gradient(place); }
  ShardEngine& engine;
  Place place;
};

ShardEngine::ShardEngine(Communicator& communicator, std::shared_ptr<torch::nn::Module> module, const ShardingOptions& options, MemoryAccount account,
                         const RankDevice& device)
    : communicator_(communicator), module_(std::move(module)), options_(options) {
  const auto on_disk = [](const Offload& offload) { return offload.place == Offload::Place::Disk; };
  if (on_disk(options_.offload_params) && options_.strategy != ShardingStrategy::ShardParameters) {
    throw Failure{Errc::InvalidConfig, "sharding: offload_params to disk needs the strategy ShardParameters; the others use whole parameters all the time"};
  }
  plan_ = plan_shards(*module_, options_);
  NamedTensors buffers;
  for (const auto& item : module_->named_buffers()) buffers.emplace_back(item.key(), item.value());
  make_equal_on_all_ranks(communicator, plan_.params, buffers);

  make_world(device, account);
  make_groups();
  for (const auto& unit : plan_.units) {
    units_.push_back(std::make_shared<UnitState>(*this, unit));
    unit.module->set_unit_hooks(units_.back());
  }
  install_hooks();
  if (options_.buffer_dtype) convert_buffers();
  if (options_.activation_checkpointing && set_activation_checkpointing(*module_, true, options_.activation_checkpointing_offload) == 0) {
    throw Failure{Errc::Unsupported, "sharding: activation_checkpointing is set, but the model has no unit (TROUPE_UNIT) that could run again"};
  }
  if (device.runtime->has_own_memory() && options_.activation_checkpointing_offload) {
    set_offload_stream(std::make_shared<OffloadStream>(*device.runtime));
  }
  if (communicator.rank() == 0) {
    for (const auto& notice : plan_.notices) std::cerr << "sharding: " << notice << "\n";
  }
}

void ShardEngine::make_world(const RankDevice& device, const MemoryAccount& account) {
  const int group_size = shard_group_size(communicator_, options_);
  const bool apart = device.communicator && device.communicator != &communicator_;
  auto& carrier = apart ? *device.communicator : communicator_;
  const auto split = [&](int color) {
    auto group = carrier.split(color);
    if (!options_.debug) return group;
    return checked_communicator(std::move(group), apart ? communicator_.split(color) : nullptr);
  };
  const int shard = communicator_.rank() / group_size;
  shard_group_ = split(shard);
  reduce_group_ = split(shard);
  if (group_size < communicator_.size()) replica_group_ = split(communicator_.rank() % group_size);
  if (apart) host_group_ = communicator_.split(shard);
  auto& runtime = *device.runtime;
  const bool offloads = runtime.has_own_memory() && options_.offload_optimizer.place != Offload::Place::None;
  world_.reset(new ShardWorld{*shard_group_, *reduce_group_, replica_group_.get(), options_, account, BufferPool{*shard_group_, account}, runtime,
                              torch_device(runtime.device()), InFlight{runtime.compute_stream()}, offloads ? runtime.create_stream() : nullptr});
  const auto rank = communicator_.rank();
  if (options_.offload_params.place == Offload::Place::Disk) {
    if (runtime.has_own_memory()) throw Failure{Errc::Unsupported, "sharding: offload_params to disk works for ranks on the CPU only; offload to the host"};
    world_->params_file = std::make_shared<ShardFile>(options_.offload_params, rank, account);
  }
  // Where a device has its own memory the masters stay in the host's, pinned; their state goes to disk all the same.
  if (options_.offload_optimizer.place == Offload::Place::Disk && !runtime.has_own_memory()) {
    world_->masters_file = std::make_shared<ShardFile>(options_.offload_optimizer, rank, account);
  }
}

/// Deferred parameters get their values here: of those that are sharded this rank's part, of the others all.
void ShardEngine::make_groups() {
  const DeferredValues deferred{*module_};
  const auto sources = all_gather_bytes(communicator_, deferred.fingerprint());
  for (std::size_t rank = 1; rank < sources.size(); ++rank) {
    if (sources[rank] == sources[0]) continue;
    throw Failure{Errc::CollectiveMismatch, "prepare: the files that parameters come from differ over ranks: rank 0 has fingerprint " + sources[0] + ", rank " +
                                                std::to_string(rank) + " has " + sources[rank]};
  }
  world_->deferred = &deferred;
  for (auto& group : plan_.groups) groups_.push_back(std::make_unique<FlatGroup>(*world_, group, plan_.params));
  world_->deferred = nullptr;
  for (const auto& [name, tensor] : plan_.params) {
    if (is_deferred(tensor)) materialize(tensor, name, deferred, world_->torch_device);
  }
}

void ShardEngine::set_offload_stream(const std::shared_ptr<OffloadStream>& stream) {
  for (const auto& module : module_->modules()) {
    if (auto* const unit = dynamic_cast<Unit*>(module.get())) unit->set_offload_stream(stream);
  }
}

ShardEngine::~ShardEngine() {
  world_->quiesce();
  set_offload_stream(nullptr);
  for (const auto& unit : plan_.units) unit.module->set_unit_hooks(nullptr);
  for (const auto& [name, tensor] : plan_.params) {
    if (tensor.requires_grad()) torch::autograd::impl::set_post_acc_grad_hooks(tensor, nullptr);
  }
}

void ShardEngine::install_hooks() {
  for (const auto& group : groups_) {
    for (std::size_t i = 0; i < group->plan().params.size(); ++i) {
      const auto& [name, tensor] = plan_.params[group->plan().params[i]];
      const Place place{group.get(), i};
      places_.emplace(tensor.unsafeGetTensorImpl(), place);
      if (!group->plan().trained) continue;
      if (torch::autograd::impl::post_acc_grad_hooks(tensor)) {
        throw Failure{Errc::InvalidArgument, "prepare: parameter " + name + " has a gradient hook already: was its model prepared before?"};
      }
      torch::autograd::impl::set_post_acc_grad_hooks(tensor, std::make_unique<Hook>(*this, place));
    }
  }
}

// ---- forward

void ShardEngine::pre_forward(UnitState& unit) {
  for (auto* group : unit.groups) group->finish_gather();
  if (active_) return;  // run again in backward, by activation checkpointing
  if (last_entered_ && last_entered_ != &unit) {
    // It was kept in case it was the last one.
    if (!last_entered_->next && options_.reshard_after_forward && !last_entered_->contains(unit)) last_entered_->release();
    last_entered_->next = &unit;
    unit.previous = last_entered_;
  }
  last_entered_ = &unit;
  if (at::GradMode::is_enabled() && std::find(forwarded_.begin(), forwarded_.end(), &unit) == forwarded_.end()) forwarded_.push_back(&unit);
  if (options_.forward_prefetch && unit.next && unit.next != units_.front().get()) unit.next->start_gather();
}

void ShardEngine::post_forward(UnitState& unit) {
  if (unit.in_backward) return;  // run again by activation checkpointing
  const bool evaluating = !at::GradMode::is_enabled();
  // The unit that ends the forward is the first that backward needs; the root's backward is under way until the end.
  const bool needed_next = unit.root || !unit.next || unit.next == units_.front().get();
  if (evaluating || (options_.reshard_after_forward && !needed_next)) unit.release();
  if (unit.root) last_entered_ = nullptr;
  if (unit.root || !units_.front()->root) world_->in_flight.check();
}

// ---- backward

void ShardEngine::begin(bool sync) {
  settle();
  for (auto& group : groups_) group->begin_backward();
  sync_ = sync;
  active_ = true;
  next_ = done_ = 0;
  order_reductions();
}

void ShardEngine::order_reductions() {
  order_.clear();
  const auto add = [this](FlatGroup* group) {
    if (group->plan().trained && std::find(order_.begin(), order_.end(), group) == order_.end()) order_.push_back(group);
  };
  for (auto it = forwarded_.rbegin(); it != forwarded_.rend(); ++it) {
    for (auto* group : (*it)->groups) {
      if (group->plan().freed) add(group);
    }
  }
  for (auto& group : groups_) add(group.get());
}

void ShardEngine::pre_backward(UnitState& unit) {
  if (unit.in_backward) return;  // several outputs: the first gradient counts
  unit.in_backward = true;
  release_finished(&unit);
  in_backward_.push_back(&unit);
  for (auto* group : unit.groups) group->finish_gather();
  if (options_.backward_prefetch && unit.previous && unit.previous->leads_back && !unit.previous->in_backward) unit.previous->start_gather();
}

void ShardEngine::release_finished(const UnitState* entered) {
  std::erase_if(in_backward_, [entered](UnitState* unit) {
    if (entered && (unit->contains(*entered) || !unit->trained_done())) return false;
    unit->release();
    return true;
  });
}

void ShardEngine::on_gradient(Place place) {
  auto& group = *place.group;
  if (!active_) {
    if (!group.plan().freed) return;  // as with DDP, a plain backward leaves gradients local
    throw Failure{Errc::InvalidArgument, "backward: gradients of sharded parameters need accelerator.backward(loss), not loss.backward()"};
  }
  if (!sync_ && options_.strategy == ShardingStrategy::ShardOptimizer) return group.keep_gradient(place.index);
  if (!group.take_gradient(place.index)) return;
  launch_ready();
  if (!group.plan().freed) return;
  for (auto* unit : in_backward_) {
    // With frozen parameters something may still need them on the way to the unit's inputs.
    if (!unit->has_frozen && !unit->root && std::find(unit->groups.begin(), unit->groups.end(), &group) != unit->groups.end() && unit->trained_done()) {
      unit->release();
    }
  }
}

void ShardEngine::launch_ready() {
  while (next_ < order_.size() && order_[next_]->complete()) launch(*order_[next_++]);
}

void ShardEngine::launch(FlatGroup& group) {
  for (; done_ + max_reductions < next_; ++done_) {
    if (done_ > 0) order_[done_ - 1]->land();
    order_[done_]->finish_reduce();
  }
  group.start_reduce();
}

void ShardEngine::finish() {
  if (sync_ || options_.strategy != ShardingStrategy::ShardOptimizer) {
    while (next_ < order_.size()) launch(*order_[next_++]);
    for (; done_ < order_.size(); ++done_) order_[done_]->finish_reduce();
    for (auto* group : order_) group->land();
    world_->in_flight.check();
    if (sync_) agree_on_used();
  }
  active_ = false;
  release_finished(nullptr);
  for (auto& unit : units_) {
    unit->in_backward = unit->leads_back = false;
    unit->release();
  }
  forwarded_.clear();
  last_entered_ = nullptr;
}

void ShardEngine::agree_on_used() {
  std::vector<std::uint8_t> used;
  for (const auto* group : order_) {
    for (std::size_t i = 0; i < group->plan().params.size(); ++i) used.push_back(group->used(i));
  }
  communicator_.all_reduce({used.data(), used.size(), DType::U8}, ReduceOp::Max).wait().or_throw();
  std::size_t at = 0;
  for (auto* group : order_) {
    const auto count = group->plan().params.size();
    group->show_gradients({used.begin() + static_cast<std::ptrdiff_t>(at), used.begin() + static_cast<std::ptrdiff_t>(at + count)});
    at += count;
  }
}

void ShardEngine::cancel() noexcept {
  active_ = false;
  in_backward_.clear();
  forwarded_.clear();
  last_entered_ = nullptr;
  for (auto& unit : units_) unit->in_backward = unit->leads_back = false;
  world_->quiesce();
  for (auto& group : groups_) group->forget_backward();
}

// ---- parameters

const ShardEngine::Place* ShardEngine::place_of(const at::Tensor& parameter) const {
  const auto found = places_.find(parameter.unsafeGetTensorImpl());
  return found == places_.end() ? nullptr : &found->second;
}

at::Tensor ShardEngine::piece_of(const at::Tensor& parameter) const {
  const auto* place = place_of(parameter);
  return place ? place->group->piece(place->index) : at::Tensor{};
}

std::shared_ptr<Residence> ShardEngine::residence_of(const at::Tensor& parameter) const {
  const auto* place = place_of(parameter);
  return place ? place->group->disk() : nullptr;
}

void ShardEngine::after_step() {
  for (auto& group : groups_) {
    if (group->plan().trained) group->masters_changed();
    group->release();
  }
  // Buckets are in the order of backward: what forward needs first is sent first.
  for (auto it = groups_.rbegin(); it != groups_.rend(); ++it) {
    if (!(*it)->plan().freed) (*it)->start_gather();
  }
  last_entered_ = nullptr;
  // Without a unit at the root nobody says when forward begins.
  if (units_.empty() || !units_.front()->root) settle();
}

void ShardEngine::settle() {
  for (auto& group : groups_) {
    if (!group->plan().freed) group->finish_gather();
  }
  world_->in_flight.check();
}

std::vector<at::Tensor> ShardEngine::gradients() const {
  std::vector<at::Tensor> grads;
  for (const auto& group : groups_) {
    for (std::size_t i = 0; i < group->plan().params.size(); ++i) {
      const auto& grad = group->piece(i).grad();
      if (grad.defined() && grad.numel() > 0) grads.push_back(grad);
    }
    if (group->kept().defined()) grads.push_back(group->kept());
  }
  return grads;
}

ModelSize ShardEngine::size() const {
  ModelSize size;
  for (const auto& [name, tensor] : plan_.params) {
    const auto* place = place_of(tensor);
    const auto numel = place ? c10::multiply_integers(place->group->sizes(place->index)) : tensor.numel();
    (tensor.requires_grad() ? size.num_params : size.num_frozen) += numel;
    if (place && !place->group->plan().freed && options_.strategy == ShardingStrategy::ShardParameters) size.num_persistent += numel;
  }
  size.num_units = std::max<int>(1, static_cast<int>(plan_.units.size()));
  for (const auto& unit : plan_.units) {
    std::int64_t numel = 0;
    for (const auto g : unit.groups) {
      if (!plan_.groups[g].freed) continue;
      for (std::size_t i = 0; i < plan_.groups[g].params.size(); ++i) numel += c10::multiply_integers(groups_[g]->sizes(i));
    }
    if (unit.name.empty()) size.root_unit = numel;
    else size.largest_unit = std::max(size.largest_unit, numel);
  }
  return size;
}

ShardEngine::Sent ShardEngine::sent() const {
  return {world_->gather.recorder().traffic(Call::AllGather).sent_bytes, world_->reduce.recorder().traffic(Call::ReduceScatter).sent_bytes,
          world_->replicas ? world_->replicas->recorder().traffic(Call::AllReduce).sent_bytes : 0};
}

void ShardEngine::convert_buffers() {
  const at::NoGradGuard no_grad;
  const auto type = scalar_type_of(*options_.buffer_dtype);
  for (auto& buffer : module_->buffers()) {
    if (buffer.is_floating_point()) buffer.set_data(buffer.to(type));
  }
}

double ShardEngine::sum_over_group(double value) {
  auto& group = host_group_ ? *host_group_ : world_->reduce;
  group.all_reduce({&value, sizeof value, DType::F64}, ReduceOp::Sum).wait().or_throw();
  return value;
}

std::string ShardEngine::first_name_of(const at::Tensor& parameter) const {
  const auto* place = place_of(parameter);
  return place ? plan_.params[place->group->plan().params[place->index]].first : std::string{};
}

ShardEngine::Piece ShardEngine::piece(const at::Tensor& parameter) const {
  const auto* place = place_of(parameter);
  if (world_->copies) world_->copies->synchronize();
  if (!place) throw Failure{Errc::NotFound, "sharding: the parameter is none of this module's sharded ones"};
  return {place->group->piece(place->index), place->group->piece_begin(place->index), place->group->sizes(place->index), place->group->disk()};
}

}  // namespace troupe::detail

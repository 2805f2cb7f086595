#include "state_store.hpp"

#include <troupe/errors.hpp>
#include <troupe/optimizer.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zero.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

namespace troupe {

namespace {

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

std::byte* bytes_of(const void* data) { return static_cast<std::byte*>(const_cast<void*>(data)); }

/// Whether `b` goes on where `a` ends: in parameters, gradients and state, under one group and step count.
bool continues(const detail::Segment& a, const detail::Segment& b) {
  const auto length = a.elements.count * static_cast<std::int64_t>(c10::elementSize(a.elements.dtype));
  return a.group == b.group && a.step == b.step && a.elements.device == b.elements.device && a.block == b.block && a.first + a.elements.count == b.first &&
         bytes_of(a.elements.param) + length == b.elements.param && bytes_of(a.elements.grad) + length == b.elements.grad;
}

/// The gradient with its elements where its parameter has them, so that memory can be walked in step.
at::Tensor aligned(const at::Tensor& grad, const at::Tensor& param, const std::string& where) {
  const auto unsupported = [&](const std::string& why) { throw Failure{Errc::Unsupported, where + " " + why}; };
  if (grad.layout() != at::kStrided) unsupported("has a sparse gradient, which no optimizer here can use; make its embedding dense (sparse = false)");
  if (grad.device() != param.device()) unsupported("is on " + param.device().str() + ", but its gradient on " + grad.device().str());
  if (!param.is_non_overlapping_and_dense()) unsupported("shares memory with itself or has gaps; train a contiguous copy");
  if (grad.scalar_type() != param.scalar_type()) {
    unsupported("is " + param.toString() + " but its gradient is " + grad.toString() + "; they must be of one dtype");
  }
  if (grad.is_same_size(param) && (grad.strides() == param.strides() || (grad.is_contiguous() && param.is_contiguous()))) return grad;
  auto copy = at::empty_strided(param.sizes(), param.strides(), param.options());
  copy.copy_(grad);
  return copy;
}

}  // namespace

detail::Elements detail::Elements::part(std::int64_t first, std::int64_t length) const {
  const auto bytes = first * static_cast<std::int64_t>(c10::elementSize(dtype));
  Elements part{.dtype = dtype, .device = device, .count = length, .param = bytes_of(param) + bytes, .grad = bytes_of(grad) + bytes, .state = state};
  for (auto& slot : part.state) {
    if (slot) slot = bytes_of(slot) + bytes;
  }
  return part;
}

Optimizer::Optimizer(std::string name, std::vector<ParamGroup> groups, const ParamGroup& own, std::vector<Slot> slots)
    : name_(std::move(name)), groups_(std::move(groups)), slots_(std::move(slots)) {
  std::set<const void*> seen;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    auto& group = groups_[g];
    for (const auto setting : {&ParamGroup::lr, &ParamGroup::weight_decay, &ParamGroup::beta1, &ParamGroup::beta2, &ParamGroup::momentum}) {
      if (group.*setting < 0) group.*setting = own.*setting;
      if (!(group.*setting >= 0)) refuse(name_ + ": a setting of group " + std::to_string(g) + " is no number");
    }
    if (group.beta1 >= 1 || group.beta2 >= 1) refuse(name_ + ": a beta of group " + std::to_string(g) + " is not in [0, 1)");
    base_lrs_.push_back(group.lr);
    for (std::size_t i = 0; i < group.params.size(); ++i) {
      const auto where = "parameter " + std::to_string(i) + " of group " + std::to_string(g);
      const auto& param = group.params[i];
      if (!param.defined() || !param.is_leaf()) refuse(name_ + ": " + where + " is not a leaf tensor: pass module->parameters()");
      if (!seen.insert(param.unsafeGetTensorImpl()).second) refuse(name_ + ": " + where + " was given before");
      handles_.push_back(param);
    }
  }
  if (seen.empty()) refuse(name_ + ": no parameters were given");
  entries_.resize(handles_.size());
  std::vector<double> initial;
  for (const auto& slot : slots_) initial.push_back(slot.initial);
  store_ = detail::make_memory_store(std::move(initial));
}

Optimizer::~Optimizer() = default;

bool Optimizer::has_state() const noexcept {
  return std::any_of(entries_.begin(), entries_.end(), [](const Entry& entry) { return entry.step > 0; });
}

void Optimizer::repoint(std::vector<std::vector<at::Tensor>> pieces) {
  const std::string call = name_ + "::repoint: ";
  if (has_state()) refuse(call + "there is state of the parameters already; prepare the optimizer before its first step or load_state");
  if (pieces.size() != groups_.size()) refuse(call + std::to_string(pieces.size()) + " groups of pieces for " + std::to_string(groups_.size()));
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (pieces[g].size() != groups_[g].params.size()) {
      refuse(call + "group " + std::to_string(g) + " has " + std::to_string(groups_[g].params.size()) + " parameters, but " +
             std::to_string(pieces[g].size()) + " pieces were given");
    }
    for (const auto& piece : pieces[g]) {
      if (!piece.defined() || !piece.is_leaf()) refuse(call + "a piece of group " + std::to_string(g) + " is not a leaf tensor");
    }
  }
  for (std::size_t g = 0; g < groups_.size(); ++g) groups_[g].params = std::move(pieces[g]);
}

void Optimizer::set_residences(std::vector<std::shared_ptr<detail::Residence>> residences) {
  if (residences.size() != handles_.size()) {
    refuse(name_ + "::set_residences: " + std::to_string(residences.size()) + " for " + std::to_string(handles_.size()) + " parameters");
  }
  residences_ = std::move(residences);
}

void Optimizer::set_names(std::vector<std::string> names) {
  if (names.size() != handles_.size()) {
    refuse(name_ + "::set_names: " + std::to_string(names.size()) + " names for " + std::to_string(handles_.size()) + " parameters");
  }
  if (std::set<std::string>{names.begin(), names.end()}.size() != names.size()) refuse(name_ + "::set_names: two parameters have one name");
  names_ = std::move(names);
}

void Optimizer::set_offload(const Offload& offload, int rank, DiskIo io) {
  if (has_state()) refuse(name_ + "::set_offload: there is state already; call it before the first step and load_state");
  for (const auto& group : groups_) {
    for (const auto& param : group.params) {
      if (param.is_cpu() || offload.place == Offload::Place::None) continue;
      throw Failure{Errc::Unsupported, name_ + "::set_offload: parameters lie on " + param.device().str() +
                                           "; state is offloaded for sharded models only, whose engine keeps the masters in host memory"};
    }
  }
  std::vector<double> initial;
  for (const auto& slot : slots_) initial.push_back(slot.initial);
  if (offload.place != Offload::Place::Disk || slots_.empty()) {
    store_ = detail::make_memory_store(std::move(initial));
    return;
  }
  auto store = detail::make_disk_store(std::move(initial), offload, rank, io);
  std::vector<detail::StateStore::BlockSize> blocks;
  std::size_t i = 0;
  for (const auto& group : groups_) {
    for (const auto& param : group.params) {
      if (handles_[i++].requires_grad()) blocks.push_back({param.numel(), param.scalar_type(), param.device()});  // a piece need not say
    }
  }
  store->reserve(blocks);
  store_ = std::move(store);
}

void Optimizer::zero_grad(bool set_to_none) {
  if (!acts()) return;
  const at::NoGradGuard no_grad;
  for (auto& group : groups_) {
    for (auto& param : group.params) {
      auto& grad = param.mutable_grad();
      if (!grad.defined()) continue;
      if (set_to_none) {
        grad.reset();
      } else {
        grad.zero_();
      }
    }
  }
}

void Optimizer::set_lr(std::size_t group, double lr) { groups_.at(group).lr = lr; }

double Optimizer::lr(std::size_t group) const { return groups_.at(group).lr; }

void Optimizer::add_entries(const std::vector<bool>& chosen) {
  std::size_t i = 0;
  for (const auto& group : groups_) {
    std::vector<std::size_t> together;
    detail::StateStore::BlockSize size;
    const auto add = [&] {
      if (together.empty()) return;
      const auto block = store_->add(size);
      for (const auto index : together) entries_[index].block = block;
      together.clear();
    };
    for (const auto& param : group.params) {
      const auto index = i++;
      if (!chosen[index] || entries_[index].step > 0) continue;
      if (!together.empty() && (param.scalar_type() != size.dtype || param.device() != size.device)) add();
      if (together.empty()) size = {0, param.scalar_type(), param.device()};
      entries_[index].first = size.count;
      size.count += param.numel();
      together.push_back(index);
    }
    add();
  }
}

void Optimizer::update() {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> grads(handles_.size());
  std::vector<bool> has_grad(handles_.size());
  std::size_t i = 0;
  for (const auto& group : groups_) {
    for (const auto& param : group.params) {
      const auto index = i++;
      if (!param.grad().defined()) continue;
      grads[index] = aligned(param.grad(), param, name_ + ": parameter " + std::to_string(index));
      has_grad[index] = true;
    }
  }
  add_entries(has_grad);
  std::vector<detail::Residence*> homes;
  for (i = 0; i < residences_.size(); ++i) {
    auto* home = residences_[i].get();
    if (home && has_grad[i] && std::find(homes.begin(), homes.end(), home) == homes.end()) homes.push_back(home);
  }
  if (!homes.empty()) homes.front()->start_enter();
  update_in(nullptr, grads);
  for (i = 0; i < homes.size(); ++i) {
    homes[i]->enter();
    if (i + 1 < homes.size()) homes[i + 1]->start_enter();
    update_in(homes[i], grads);
    homes[i]->leave(true);
  }
}

void Optimizer::update_in(const detail::Residence* home, const std::vector<at::Tensor>& grads) {
  std::vector<detail::Segment> segments;
  std::size_t i = 0;
  for (const auto& group : groups_) {
    for (const auto& param : group.params) {
      const auto index = i++;
      if (!grads[index].defined() || (residences_.empty() ? nullptr : residences_[index].get()) != home) continue;
      auto& entry = entries_[index];
      ++entry.step;
      if (param.numel() == 0) continue;
      detail::Segment segment{.elements = {.dtype = param.scalar_type(), .device = param.device(), .count = param.numel(), .param = param.data_ptr(), .grad = grads[index].data_ptr()},
                              .group = &group,
                              .step = entry.step,
                              .block = entry.block,
                              .first = entry.first};
      if (!segments.empty() && continues(segments.back(), segment)) {
        segments.back().elements.count += segment.elements.count;
      } else {
        segments.push_back(segment);
      }
    }
  }
  const auto place = [](const detail::Segment& s) { return std::tuple{s.block, s.first}; };
  std::sort(segments.begin(), segments.end(), [&](const auto& a, const auto& b) { return place(a) < place(b); });
  store_->update(segments, [this](const detail::Elements& elements, const detail::Segment& s) { apply(elements, *s.group, s.step); });
}

std::string Optimizer::key(const std::string& slot, std::size_t index, StateKeys keys) const {
  if (keys == StateKeys::Index) return slot + "." + std::to_string(index);
  if (names_.empty()) refuse(name_ + ": state was asked for by name, but set_names was not called");
  return slot + "." + names_[index];
}

Optimizer::State Optimizer::state(StateKeys keys) const {
  State state;
  std::size_t i = 0;
  for (const auto& group : groups_) {
    for (const auto& param : group.params) {
      const auto index = i++;
      const auto& entry = entries_[index];
      if (entry.step == 0) continue;
      for (std::size_t s = 0; s < slots_.size(); ++s) {
        const auto flat = store_->read(s, entry.block, entry.first, param.numel());
        state.emplace_back(key(slots_[s].name, index, keys), flat.as_strided(param.sizes(), param.strides(), flat.storage_offset()));
      }
      state.emplace_back(key("step", index, keys), at::full({}, static_cast<double>(entry.step), at::kFloat));
    }
  }
  return state;
}

void Optimizer::load_state(const State& state, StateKeys keys) {
  const at::NoGradGuard no_grad;
  const std::map<std::string, at::Tensor> by_key(state.begin(), state.end());
  std::vector<bool> saved(handles_.size());  // the others were never updated
  std::size_t used = 0;
  std::size_t i = 0;
  for (const auto& group : groups_) {
    for (const auto& param : group.params) {
      const auto index = i++;
      if (!by_key.contains(key("step", index, keys))) continue;
      for (const auto& slot : slots_) {
        const auto found = by_key.find(key(slot.name, index, keys));
        if (found == by_key.end() || found->second.sizes() != param.sizes()) {
          refuse(name_ + ": state tensor " + key(slot.name, index, keys) +
                 " is missing or of another shape than its parameter: the state belongs to other parameters");
        }
      }
      saved[index] = true;
      used += slots_.size() + 1;
    }
  }
  if (used != by_key.size()) {
    refuse(name_ + ": " + std::to_string(by_key.size() - used) + " state tensors belong to no parameter; there are " + std::to_string(saved.size()) + " parameters");
  }
  std::vector<std::int64_t> num_updates(handles_.size());
  for (i = 0; i < num_updates.size(); ++i) {
    if (saved[i]) num_updates[i] = static_cast<std::int64_t>(by_key.at(key("step", i, keys)).item<double>());
  }
  reset_state(num_updates);
  for (i = 0; i < num_updates.size(); ++i) {
    for (std::size_t s = 0; s < slots_.size() && saved[i]; ++s) write_state(s, i, by_key.at(key(slots_[s].name, i, keys)));
  }
}

bool Optimizer::keeps_state_on_disk() const noexcept { return store_->on_disk(); }

std::vector<std::string> Optimizer::slot_names() const {
  std::vector<std::string> names;
  for (const auto& slot : slots_) names.push_back(slot.name);
  return names;
}

const at::Tensor& Optimizer::trained(std::size_t parameter) const {
  for (const auto& group : groups_) {
    if (parameter < group.params.size()) return group.params[parameter];
    parameter -= group.params.size();
  }
  refuse(name_ + ": there are only " + std::to_string(handles_.size()) + " parameters");
}

at::Tensor Optimizer::state_view(std::size_t slot, std::size_t parameter) const {
  if (store_->on_disk()) return {};
  const auto& entry = entries_.at(parameter);
  const auto& param = trained(parameter);
  const auto flat = store_->read(slot, entry.block, entry.first, param.numel());
  return flat.as_strided(param.sizes(), param.strides(), flat.storage_offset());
}

std::vector<std::span<const std::byte>> Optimizer::state_on_disk(std::size_t slot, std::size_t parameter, std::shared_ptr<void>& mapping) const {
  const auto& entry = entries_.at(parameter);
  return store_->map(slot, entry.block, entry.first, trained(parameter).numel(), mapping);
}

void Optimizer::reset_state(const std::vector<std::int64_t>& num_updates) {
  if (num_updates.size() != handles_.size()) {
    refuse(name_ + "::reset_state: " + std::to_string(num_updates.size()) + " numbers for " + std::to_string(handles_.size()) + " parameters");
  }
  store_->clear();
  entries_.assign(handles_.size(), {});
  std::vector<bool> chosen(handles_.size());
  for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = num_updates[i] > 0;
  add_entries(chosen);
  for (std::size_t i = 0; i < chosen.size(); ++i) entries_[i].step = num_updates[i];
}

void Optimizer::write_state(std::size_t slot, std::size_t parameter, const at::Tensor& values) {
  const at::NoGradGuard no_grad;
  const auto& entry = entries_.at(parameter);
  const auto& param = trained(parameter);
  auto in_memory_order = values;
  if (values.scalar_type() != param.scalar_type() || values.strides() != param.strides()) {
    in_memory_order = at::empty_strided(param.sizes(), param.strides(), param.options().requires_grad(false));
    in_memory_order.copy_(values);
  }
  store_->write(slot, entry.block, entry.first, in_memory_order.as_strided({param.numel()}, {1}));
}

}  // namespace troupe

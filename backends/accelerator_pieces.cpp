// What this rank holds of the state that checkpoints keep.
#include "accelerator_impl.hpp"
#include "frozen_base.hpp"

#include <troupe/errors.hpp>
#include <troupe/memory_estimate.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string_view>

namespace troupe {

namespace {

using detail::StatePiece;

std::string_view bytes_of(const at::Tensor& contiguous) { return {static_cast<const char*>(contiguous.const_data_ptr()), contiguous.nbytes()}; }

std::string generator_bytes(at::Generator generator) {
  const std::scoped_lock lock{generator.mutex()};
  return std::string{bytes_of(generator.get_state())};
}

/// A number, then as many bytes.
void append(std::string& text, std::string_view bytes) {
  const std::uint64_t size = bytes.size();
  text.append(reinterpret_cast<const char*>(&size), sizeof size).append(bytes);
}

std::string_view take(std::string_view& text) {
  std::uint64_t size = 0;
  if (text.size() < sizeof size) return {};
  std::memcpy(&size, text.data(), sizeof size);
  text.remove_prefix(sizeof size);
  const auto bytes = text.substr(0, static_cast<std::size_t>(size));
  text.remove_prefix(bytes.size());
  return bytes;
}

std::size_t digest(const at::Tensor& buffer) { return std::hash<std::string_view>{}(bytes_of(buffer.detach().contiguous())); }

}  // namespace

StatePiece Accelerator::Impl::piece_of(const at::Tensor& handle) const {
  StatePiece piece;
  if (const auto* shards = shards_of(handle)) {
    auto part = shards->piece(handle);
    piece.sizes = std::move(part.sizes);
    piece.first = part.begin;
    piece.local = std::move(part.values);
    piece.num_holders = shards->num_replicas();
    piece.holder = shards->replica();
  } else {
    piece.sizes = handle.sizes().vec();
    piece.local = handle.detach();
    piece.holder = communicator.rank();
    if (!replicas_differ && equal.contains(handle.unsafeGetTensorImpl())) piece.num_holders = communicator.size();
    else if (piece.holder > 0) piece.holder = -1;
  }
  piece.count = piece.local.numel();
  piece.dtype = piece.local.scalar_type();
  piece.finite = handle.requires_grad();
  return piece;
}

/// Of a parameter whose values are on disk: they are read from there, and written there.
void Accelerator::Impl::leave_on_disk(StatePiece& piece, const at::Tensor& handle) const {
  const auto* shards = shards_of(handle);
  if (!shards) return;
  const auto part = shards->piece(handle);
  if (!part.disk) return;
  const auto first = part.values.storage_offset(), count = part.values.numel();
  piece.local = at::Tensor{};
  if (count > 0) piece.mapped = {part.disk->mapped(first, count)};
  piece.put = [disk = part.disk, first, count](const at::Tensor& values) {
    disk->enter();
    disk->tensor().narrow(0, first, count).copy_(values);
    disk->leave(true);
  };
}

std::vector<StatePiece> Accelerator::Impl::pieces_of(const Model& model) const {
  std::vector<StatePiece> pieces;
  std::map<const void*, std::size_t> known;
  const auto is_alias = [&](const at::Tensor& tensor, const std::string& name) {
    const auto [found, fresh] = known.try_emplace(tensor.unsafeGetTensorImpl(), pieces.size());
    if (!fresh) pieces[found->second].aliases.push_back(name);
    return !fresh;
  };
  const bool trained_only = !detail::frozen_base_of(*model.module).empty();
  for (const auto& item : model.module->named_parameters()) {
    if (trained_only && !item.value().requires_grad()) continue;
    if (is_alias(item.value(), item.key())) continue;
    pieces.push_back(piece_of(item.value()));
    pieces.back().name = item.key();
    leave_on_disk(pieces.back(), item.value());
  }
  for (const auto& item : model.module->named_buffers()) {
    if (is_alias(item.value(), item.key())) continue;
    auto& piece = pieces.emplace_back();
    piece.name = item.key();
    piece.local = saved_buffer(item.value());
    piece.dtype = piece.local.scalar_type();
    piece.sizes = piece.local.sizes().vec();
    piece.count = piece.local.numel();
    piece.holder = communicator.rank() == 0 ? 0 : -1;  // they may differ over ranks
  }
  return pieces;
}

std::string Accelerator::Impl::name_in(const Optimizer& optimizer, std::size_t parameter) {
  return optimizer.names().empty() ? std::to_string(parameter) : optimizer.names()[parameter];
}

std::vector<StatePiece> Accelerator::Impl::pieces_of(const Optimizer& optimizer, std::shared_ptr<void>& mapping) const {
  std::vector<StatePiece> pieces;
  const auto slots = optimizer.slot_names();
  for (std::size_t i = 0; i < optimizer.handles().size(); ++i) {
    const auto updates = optimizer.num_updates(i);
    if (updates == 0) continue;
    auto like = piece_of(optimizer.handles()[i]);
    like.dtype = optimizer.trained(i).scalar_type();
    for (std::size_t s = 0; s < slots.size(); ++s) {
      auto& piece = pieces.emplace_back(like);
      piece.name = slots[s] + "." + name_in(optimizer, i);
      piece.local = optimizer.state_view(s, i);
      if (!piece.local.defined() && piece.count > 0) piece.mapped = optimizer.state_on_disk(s, i, mapping);
    }
    auto& step = pieces.emplace_back();
    step.name = "step." + name_in(optimizer, i);
    step.dtype = at::kLong;
    step.local = at::full({}, updates, at::kLong);
    step.count = 1;
    step.holder = communicator.rank() == 0 ? 0 : -1;
  }
  return pieces;
}

std::int64_t Accelerator::Impl::train_step() const {
  std::int64_t step = 0;
  for (const auto* optimizer : optimizers) {
    for (std::size_t i = 0; i < optimizer->handles().size(); ++i) step = std::max(step, optimizer->num_updates(i));
  }
  return step;
}

TrainState Accelerator::Impl::train_state() const {
  TrainState state;
  state.world_size = communicator.size();
  state.strategy = short_name(sharding().strategy);
  state.step = train_step();
  for (const auto* optimizer : optimizers) {
    auto& lrs = state.learning_rates.emplace_back();
    for (const auto& group : optimizer->groups()) lrs.push_back(group.lr);
  }
  for (const auto* scheduler : schedulers) state.scheduler_steps.push_back(scheduler->last_step());
  auto positions = is_inside_window() ? window_start.positions : data_positions();
  state.loaders = std::move(positions.loaders);
  state.objects.merge(positions.shared);
  if (!loaders.empty()) state.epoch = state.loaders.front().epoch;
  else if (!streams.empty()) state.epoch = streams.front().stream->epoch();
  if (options.mixed_precision == Precision::FP16) {
    const auto& scale = scaler.state();
    state.loss_scale = scale.scale;
    state.loss_scale_good_steps = scale.good_steps;
    state.loss_scale_hysteresis = scale.hysteresis;
  }
  for (std::size_t i = 0; i < objects.size(); ++i) {
    if (!objects[i].per_rank) state.objects["object_" + std::to_string(i)] = objects[i].save();
  }
  for (std::size_t m = 0; m < models.size(); ++m) detail::note_frozen_base(state, m, *models[m].module);
  return state;
}

RankState Accelerator::Impl::rank_state() const {
  RankState state;
  state.rng = is_inside_window() ? window_start.rng : generator_bytes(rank_generator());
  // torch's own dropout draws from the process's generator; ranks that are threads share it, and then no load can repeat them.
  state.objects["default_generator"] = is_inside_window() ? window_start.default_generator : generator_bytes(at::detail::getDefaultCPUGenerator());
  for (std::size_t m = 0; m < models.size() && communicator.rank() > 0; ++m) {
    if (auto bytes = own_buffers(models[m]); !bytes.empty()) state.objects["buffers_" + std::to_string(m)] = std::move(bytes);
  }
  auto positions = is_inside_window() ? window_start.positions : data_positions();
  state.objects.merge(positions.own);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    if (objects[i].per_rank) state.objects["object_" + std::to_string(i)] = objects[i].save();
  }
  return state;
}

Accelerator::Impl::DataPositions Accelerator::Impl::data_positions() const {
  DataPositions positions;
  for (const auto& l : loaders) {
    const auto position = l.loader->position();
    const auto key = loader_key(positions.loaders.size());
    if (l.loader->has_own_position()) positions.own[key] = l.loader->state_dict();
    else if (!position.stream.empty()) positions.shared[key] = l.loader->state_dict();
    positions.loaders.push_back({position.epoch, position.num_batches, l.loader->samples_consumed(), l.shared_seed});
  }
  save_streams(positions.own);
  return positions;
}

at::Tensor Accelerator::Impl::saved_buffer(const at::Tensor& buffer) const {
  const auto noted = window_start.buffers.find(buffer.unsafeGetTensorImpl());
  const bool is_older = is_inside_window() && noted != window_start.buffers.end();
  return is_older ? noted->second : buffer.detach();
}

void Accelerator::Impl::note_window_start() {
  const at::NoGradGuard no_grad;
  auto& w = window_start;
  w.positions = data_positions();
  w.rng = generator_bytes(rank_generator());
  w.default_generator = generator_bytes(at::detail::getDefaultCPUGenerator());
  for (const auto& model : models) {
    for (const auto& buffer : model.module->buffers()) {
      // Versions do not tell: batch norm's kernels write running statistics without counting.
      auto& noted = w.buffers[buffer.unsafeGetTensorImpl()];
      if (noted.defined() && noted.sizes() == buffer.sizes() && noted.scalar_type() == buffer.scalar_type()) noted.copy_(buffer);
      else noted = buffer.detach().clone();
    }
  }
  w.is_noted = true;
}

Accelerator::Impl::Collected Accelerator::Impl::collect() const {
  const at::NoGradGuard no_grad;
  Collected collected;
  auto& part = collected.part;
  part.rank = communicator.rank();
  part.num_writers = communicator.size();
  part.attempt = context.attempt();
  const auto limit = options.checkpoint.max_shard_size.bytes();
  const auto stem = [](const char* name, std::size_t i) { return i ? name + ("_" + std::to_string(i)) : std::string{name}; };
  for (std::size_t m = 0; m < models.size(); ++m) {
    part.files.push_back(detail::shared_file(stem("model", m), pieces_of(models[m]), limit, collected.keep));
  }
  for (std::size_t o = 0; o < optimizers.size(); ++o) {
    const auto pieces = pieces_of(*optimizers[o], collected.mapping);
    for (const auto& piece : pieces) {
      if (piece.dtype == at::kLong) collected.keep.push_back(piece.local);  // counts live nowhere else
    }
    part.files.push_back(detail::shared_file(stem("optimizer", o), pieces, limit, collected.keep));
  }
  part.state = train_state();
  part.rank_state = rank_state();
  return collected;
}

void Accelerator::Impl::note_buffers(Model& model) {
  model.buffer_digests.clear();
  for (const auto& item : model.module->named_buffers()) model.buffer_digests.push_back(digest(item.value()));
}

std::string Accelerator::Impl::own_buffers(const Model& model) const {
  std::string text;
  std::size_t i = 0;
  for (const auto& item : model.module->named_buffers()) {
    const auto place = i++;
    const auto values = saved_buffer(item.value());
    if (place < model.buffer_digests.size() && model.buffer_digests[place] == digest(values)) continue;
    append(text, item.key());
    append(text, bytes_of(values.contiguous()));
  }
  return text;
}

void Accelerator::Impl::load_own_buffers(const Model& model, const std::string& bytes) {
  const at::NoGradGuard no_grad;
  const auto buffers = model.module->named_buffers();
  for (std::string_view text{bytes}; !text.empty();) {
    const auto name = take(text);
    const auto values = take(text);
    const auto* buffer = buffers.find(std::string{name});
    if (!buffer || buffer->nbytes() != values.size()) continue;  // of another model, which is not strict
    at::Tensor{*buffer}.copy_(at::from_blob(const_cast<char*>(values.data()), buffer->sizes(), at::TensorOptions().dtype(buffer->scalar_type())));
  }
}

}  // namespace troupe

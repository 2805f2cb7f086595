// Ranks with different numbers of batches.
#include "accelerator_impl.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <iostream>
#include <sstream>

namespace troupe {

namespace {

using NamedTensors = detail::NamedTensors;

/// Zeros of the names, types and shapes that `root` has.
NamedTensors like_root(Communicator& communicator, const NamedTensors& mine, int root) {
  std::ostringstream text;
  for (const auto& [name, tensor] : mine) {
    text << name << " " << static_cast<int>(tensor.scalar_type()) << " " << tensor.dim();
    for (const auto size : tensor.sizes()) text << " " << size;
    text << "\n";
  }
  const auto all = detail::all_gather_bytes(communicator, communicator.rank() == root ? text.str() : std::string{});
  if (communicator.rank() == root) return mine;
  std::istringstream lines{all[static_cast<std::size_t>(root)]};
  NamedTensors result;
  std::string name;
  int type = 0;
  std::size_t dims = 0;
  while (lines >> name >> type >> dims) {
    std::vector<std::int64_t> sizes(dims);
    for (auto& size : sizes) lines >> size;
    result.emplace_back(name, at::zeros(sizes, static_cast<at::ScalarType>(type)));
  }
  return result;
}

void copy_optimizer(Communicator& communicator, Optimizer& optimizer, int root) {
  const auto state = like_root(communicator, optimizer.state(), root);
  std::vector<at::Tensor> tensors;
  for (const auto& [name, tensor] : state) tensors.push_back(tensor);
  detail::broadcast_tensors(communicator, tensors, root);
  if (communicator.rank() != root) optimizer.load_state(state);
}

/// Sets something for as long as it lives.
template <class T>
class Temporarily {
 public:
  Temporarily(T& place, T value) : place_(place), before_(std::exchange(place, value)) {}
  ~Temporarily() { place_ = before_; }
  Temporarily(const Temporarily&) = delete;
  Temporarily& operator=(const Temporarily&) = delete;

 private:
  T& place_;
  T before_;
};

}  // namespace

bool Accelerator::Impl::all_replicated() const {
  if (communicator.size() == 1) return true;
  return std::all_of(models.begin(), models.end(), [](const Model& model) {
    const auto params = model.module->parameters();
    return model.engine || std::none_of(params.begin(), params.end(), [](const auto& p) { return p.requires_grad(); });
  });
}

Accelerator::Impl::Turnout Accelerator::Impl::announce(bool active, double weight) {
  if (local_depth > 0) throw Failure{Errc::InvalidArgument, "join_uneven_inputs: a LocalSGD is alive, which reduces no gradients"};
  const std::array<double, 2> mine{active ? 1.0 : 0.0, weight};
  std::vector<std::array<double, 2>> all(static_cast<std::size_t>(communicator.size()));
  const auto bytes = all.size() * sizeof mine;
  communicator.all_gather({mine.data(), sizeof mine, DType::F64}, {all.data(), bytes, DType::F64}).wait().or_throw();
  Turnout now{.first_active = communicator.size()};
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r][0] == 0) continue;
    ++now.num_active;
    now.first_active = std::min(now.first_active, static_cast<int>(r));
    now.weight += all[r][1];
  }
  if (now.num_active > 0) last_turnout = now;
  return now;
}

void Accelerator::Impl::copy_training_state(int root) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> tensors;
  for (const auto& model : models) {
    if (!model.engine) continue;
    for (const auto& tensor : model.module->parameters()) tensors.push_back(tensor);
    for (const auto& tensor : model.module->buffers()) tensors.push_back(tensor);
  }
  detail::broadcast_tensors(communicator, tensors, root);
  for (auto* optimizer : optimizers) copy_optimizer(communicator, *optimizer, root);
  for (auto* scheduler : schedulers) {
    auto step = scheduler->last_step();
    communicator.broadcast({&step, sizeof step, DType::I64}, root).wait().or_throw();
    scheduler->set_step(step);
  }
}

void Accelerator::join_uneven_inputs(const std::function<void()>& body, std::optional<bool> even_batches) {
  auto& i = *impl_;
  if (num_processes() == 1) return body();
  if (!i.all_replicated()) {
    if (is_main_process()) std::cerr << "join_uneven_inputs: a prepared model is sharded, which it does not support: it has no effect\n";
    return body();
  }
  if (i.joining) throw Failure{Errc::InvalidArgument, "join_uneven_inputs: called inside another one"};
  const auto shard_loaders = [&i](bool even) {
    i.options.dataloader.even_batches = even;
    for (const auto& loader : i.loaders) i.shard(loader);
  };
  const bool before = i.options.dataloader.even_batches;
  const Scope restore{[&] {
    if (even_batches) shard_loaders(before);
  }};
  if (even_batches) shard_loaders(*even_batches);
  const Temporarily joining{i.joining, true};
  i.last_turnout = {};
  i.turnout.reset();

  body();

  std::vector<detail::DdpEngine*> engines;
  for (auto& model : i.models) {
    if (model.engine) engines.push_back(model.engine.get());
  }
  for (auto now = i.announce(false, 0); now.num_active > 0; now = i.announce(false, 0)) {
    const detail::Pass pass{.buffer_root = now.first_active, .hold_back = engines.size() > 1};
    for (auto* engine : engines) engine->shadow(pass);
    if (i.options.mixed_precision == Precision::FP16) (void)i.agree_on_overflow(Impl::Nothing);
  }
  const auto& last = i.last_turnout;
  if (last.num_active > 0 && last.num_active < num_processes()) i.copy_training_state(last.first_active);
}

}  // namespace troupe

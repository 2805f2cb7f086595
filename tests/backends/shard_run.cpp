#include "shard_run.hpp"

#include "fake_context.hpp"

#include <troupe/loss_scaler.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/tanh.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace troupe::test {

namespace {

constexpr std::int64_t kVocabulary = 13;
constexpr std::int64_t kWidth = 6;
constexpr double kSkipped = std::numeric_limits<double>::quiet_NaN();

OddNet make_net(const ShardCase& c) {
  set_seed(7);
  return OddNet{kVocabulary, kWidth, c.blocks, c.dropout};
}

/// Ids [2, 5] of one rank's micro-batch, the same whoever asks.
at::Tensor batch(int step, int micro, int rank) {
  set_seed(static_cast<std::uint64_t>(1000 + step * 100 + micro * 10 + rank));
  return at::randint(0, kVocabulary, {2, 5}, rank_generator(), at::TensorOptions().dtype(at::kLong));
}

at::Tensor loss_of(OddNet& net, const at::Tensor& ids) {
  const auto scores = net(ids).to(at::kFloat);
  return at::cross_entropy_loss(scores.narrow(1, 0, 4).reshape({-1, kVocabulary}), ids.narrow(1, 1, 4).reshape({-1}));
}

/// By name; tied ones once.
std::vector<at::Tensor> trained_of(OddNet& net) {
  std::vector<at::Tensor> trained;
  for (auto& p : net->parameters()) {
    if (p.requires_grad()) trained.push_back(p);
  }
  return trained;
}

AdamW make_optimizer(const std::vector<at::Tensor>& trained) {
  std::vector<ParamGroup> groups(2);
  groups[1].weight_decay = 0;
  for (const auto& p : trained) groups[p.dim() == 1].params.push_back(p);
  return AdamW{std::move(groups), {.lr = 1e-2, .weight_decay = 0.1}};
}

/// x with elements zeroed, the others scaled.
at::Tensor drop(const at::Tensor& x, double probability) {
  const auto mask = at::empty(x.sizes(), at::kFloat).bernoulli_(1 - probability, rank_generator()).mul_(1 / (1 - probability));
  return x * mask.to(x.scalar_type());
}

}  // namespace

OddBlockImpl::OddBlockImpl(std::int64_t width, bool uses, double probability)
    : up(register_module("up", torch::nn::Linear(width, width + 1))),
      down(register_module("down", torch::nn::Linear(width + 1, width))),
      norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})))),
      spare(register_parameter("spare", at::ones({3, width}))),
      frozen(register_parameter("frozen", at::ones({width}), /*requires_grad=*/false)),
      uses_spare(uses),
      dropout(probability) {
  const at::NoGradGuard no_grad;
  for (auto& p : parameters()) {
    if (p.requires_grad()) p.normal_(0, 0.4, rank_generator());
  }
}

at::Tensor OddBlockImpl::forward(const at::Tensor& x) {
  const auto inner = at::tanh(up(norm(x)));
  auto y = x + down(dropout > 0 ? drop(inner, dropout) : inner) * frozen;
  return uses_spare ? y + spare.sum(0) : y;
}

OddNetImpl::OddNetImpl(std::int64_t vocabulary, std::int64_t width, int num_blocks, double dropout)
    : embedding(register_module("embedding", torch::nn::Embedding(vocabulary, width))), scale(register_buffer("scale", at::ones({1}))) {
  const at::NoGradGuard no_grad;
  embedding->weight.normal_(0, 0.4, rank_generator());
  for (int i = 0; i < num_blocks; ++i) blocks.push_back(register_module("block" + std::to_string(i), OddBlock(width, i % 2 == 0, dropout)));
}

at::Tensor OddNetImpl::forward(const at::Tensor& ids) {
  auto x = embedding(ids) * scale;
  for (auto& block : blocks) x = block(x);
  return at::linear(x, embedding->weight);
}

ShardResult train_sharded(TrainContext& context, const ShardCase& c) {
  Accelerator accelerator{context, {.mixed_precision = c.precision, .gradient_accumulation_steps = c.accumulation,
                           .ddp = {.find_unused_parameters = true}, .sharding = c.sharding, .loss_scale = c.loss_scale}};
  auto net = make_net(c);
  auto optimizer = make_optimizer(trained_of(net));
  if (c.sharding.activation_checkpointing) set_activation_checkpointing(*net, true, c.accumulation > 1);
  accelerator.prepare(net, optimizer);
  ShardResult result;
  for (int step = 0; step < c.steps; ++step) {
    for (int m = 0; m < c.accumulation; ++m) {
      const auto window = accelerator.accumulate(net);
      const auto loss = [&] {
        const auto scope = accelerator.autocast();
        return loss_of(net, batch(step, m, context.world_rank()));
      }();
      accelerator.backward(loss);
      result.losses.push_back(loss.item<double>());
      if (accelerator.sync_gradients()) {
        const auto norm = accelerator.clip_grad_norm(net->parameters(), c.clip > 0 ? c.clip : std::numeric_limits<double>::infinity());
        result.norms.push_back(accelerator.optimizer_step_was_skipped() ? kSkipped : norm);
        result.scales.push_back(accelerator.loss_scale());
      }
      optimizer.step();
      optimizer.zero_grad(c.set_to_none);
    }
  }
  if (!c.gathers_result) return result;
  for (auto& [name, tensor] : accelerator.get_state_dict(net)) result.parameters[name] = tensor.clone();
  return result;
}

namespace {

using Gradients = std::vector<at::Tensor>;  // one a trained parameter, fp32; undefined: none

/// Inputs of units as the engine's hooks give them.
struct CastInputs final : UnitHooks {
  explicit CastInputs(at::ScalarType t) : type(t) {}
  void pre_forward() override {}
  at::Tensor on_input(const at::Tensor& input) override { return input.defined() && input.is_floating_point() ? input.to(type) : input; }
  void on_output(const at::Tensor&) override {}
  void post_forward() override {}
  at::ScalarType type;
};

void add(Gradients& sum, const Gradients& more) {
  for (std::size_t i = 0; i < sum.size(); ++i) {
    if (!sum[i].defined()) sum[i] = more[i].defined() ? more[i].clone() : at::Tensor{};
    else if (more[i].defined()) sum[i].add_(more[i]);
  }
}

void divide(Gradients& sum, int by) {
  for (auto& tensor : sum) {
    if (tensor.defined()) tensor.div_(by);
  }
}

/// The mean over ranks, added up in their order: inside groups, then over groups.
Gradients mean_over(const std::vector<Gradients>& of_rank, int group) {
  const int ranks = static_cast<int>(of_rank.size());
  Gradients total(of_rank.front().size());
  for (int first = 0; first < ranks; first += group) {
    Gradients sum(total.size());
    for (int r = first; r < first + group; ++r) add(sum, of_rank[static_cast<std::size_t>(r)]);
    divide(sum, group);
    add(total, sum);
  }
  divide(total, ranks / group);
  return total;
}

/// The net, and what the optimizer updates: the same, or fp32 masters beside 16-bit weights.
struct Alone {
  explicit Alone(const ShardCase& c) : net(make_net(c)), weights(trained_of(net)), masters(weights) {
    if (c.precision == Precision::No) return;
    type = c.precision == Precision::BF16 ? at::kBFloat16 : at::kHalf;
    if (c.sharding.strategy == ShardingStrategy::Replicate) return;
    casts = true;
    const at::NoGradGuard no_grad;
    for (auto& m : masters) m = m.detach().clone().requires_grad_(true);
    for (const auto& item : net->named_parameters()) frozen.emplace_back(item.key(), item.value().detach().clone());
    for (auto& p : net->parameters()) p.set_data(p.to(type));
    const auto hooks = std::make_shared<CastInputs>(type);
    net->set_unit_hooks(hooks);
    for (auto& block : net->blocks) block->set_unit_hooks(hooks);
  }
  /// Of a batch, in fp32; the loss.
  double backward(Accelerator& accelerator, const at::Tensor& ids, double factor, Gradients& grads) {
    const auto loss = [&] {
      const auto scope = accelerator.autocast();
      return loss_of(net, ids);
    }();
    (factor == 1 ? loss : loss * factor).backward();
    const at::NoGradGuard no_grad;
    for (auto& p : weights) {
      auto& grad = p.mutable_grad();
      grads.push_back(grad.defined() ? grad.to(at::kFloat, false, /*copy=*/true) : at::Tensor{});
      grad.reset();
    }
    return loss.item<double>();
  }
  void updated() {
    if (!casts) return;
    const at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i].copy_(masters[i]);
  }
  [[nodiscard]] std::map<std::string, at::Tensor> parameters() {
    std::map<std::string, at::Tensor> named(frozen.begin(), frozen.end());
    std::size_t i = 0;
    for (const auto& item : net->named_parameters()) {
      if (item.value().requires_grad()) named[item.key()] = masters[i++].detach().clone();
      else if (!casts) named[item.key()] = item.value().detach().clone();
    }
    return named;
  }

  OddNet net;
  std::vector<at::Tensor> weights, masters;
  std::vector<std::pair<std::string, at::Tensor>> frozen;  // as they were in fp32
  at::ScalarType type = at::kFloat;
  bool casts = false;
};

/// Divides by the scale; false when something is not finite.
bool unscale(const Gradients& grads, double scale) {
  bool finite = true;
  for (const auto& grad : grads) {
    if (!grad.defined()) continue;
    finite = finite && at::isfinite(grad).all().item<bool>();
    grad.mul_(static_cast<float>(1 / scale));
  }
  return finite;
}

/// Their norm before clipping.
double clip(const Gradients& grads, double most) {
  double squares = 0;
  for (const auto& grad : grads) {
    if (grad.defined()) squares += grad.to(at::kDouble).square().sum().item<double>();
  }
  const double norm = std::sqrt(squares);
  if (most > 0 && most / (norm + 1e-6) < 1) {
    for (const auto& grad : grads) {
      if (grad.defined()) grad.mul_(static_cast<float>(most / (norm + 1e-6)));
    }
  }
  return norm;
}

}  // namespace

ShardResult train_alone(const ShardCase& c, int ranks) {
  Alone alone{c};
  auto optimizer = make_optimizer(alone.masters);
  const auto self = self_communicator();
  FakeContext context{*self};
  Accelerator accelerator{context, {.mixed_precision = c.precision}};  // for its autocast
  const int group = c.sharding.shard_group_size ? c.sharding.shard_group_size : ranks;
  const bool sums_windows_first = c.sharding.strategy == ShardingStrategy::ShardOptimizer || c.sharding.strategy == ShardingStrategy::Replicate;
  LossScaler scaler{c.precision == Precision::FP16 ? c.loss_scale : LossScale{.dynamic = false, .initial = 1}};
  ShardResult result;
  for (int step = 0; step < c.steps; ++step) {
    const Gradients none(alone.weights.size());
    std::vector<Gradients> windows(static_cast<std::size_t>(ranks), none);
    Gradients total = none;
    for (int m = 0; m < c.accumulation; ++m) {
      std::vector<Gradients> now;
      for (int r = 0; r < ranks; ++r) {
        const auto loss = alone.backward(accelerator, batch(step, m, r), scaler.scale() / c.accumulation, now.emplace_back());
        if (r == 0) result.losses.push_back(loss);
      }
      const at::NoGradGuard no_grad;
      for (std::size_t r = 0; r < now.size(); ++r) add(windows[r], now[r]);
      if (!sums_windows_first) add(total, mean_over(now, group));
    }
    const at::NoGradGuard no_grad;
    if (sums_windows_first) total = mean_over(windows, group);
    const bool good = unscale(total, scaler.scale());
    scaler.update(!good);
    const double norm = clip(total, c.clip);
    result.norms.push_back(good ? norm : kSkipped);
    result.scales.push_back(scaler.scale());
    if (!good) continue;
    for (std::size_t i = 0; i < total.size(); ++i) alone.masters[i].mutable_grad() = total[i];
    optimizer.step();
    optimizer.zero_grad();
    alone.updated();
  }
  result.parameters = alone.parameters();
  return result;
}

void expect_equal(const ShardResult& ours, const ShardResult& reference) {
  std::ostringstream text;
  text.precision(12);
  for (std::size_t s = 0; s < reference.losses.size(); ++s) {
    if (ours.losses.at(s) != reference.losses[s]) text << "loss " << s << " is " << ours.losses[s] << ", alone " << reference.losses[s] << "\n";
  }
  for (std::size_t s = 0; s < reference.norms.size(); ++s) {
    const bool skipped = std::isnan(reference.norms[s]);
    if (skipped != std::isnan(ours.norms.at(s)) || std::abs(ours.norms[s] - reference.norms[s]) > 1e-9 * reference.norms[s]) {
      text << "norm " << s << " is " << ours.norms[s] << ", alone " << reference.norms[s] << "\n";
    }
  }
  for (std::size_t s = 0; s < reference.scales.size(); ++s) {
    if (ours.scales.at(s) != reference.scales[s]) text << "loss scale " << s << " is " << ours.scales[s] << ", alone " << reference.scales[s] << "\n";
  }
  for (const auto& [name, tensor] : reference.parameters) {
    const auto found = ours.parameters.find(name);
    if (found == ours.parameters.end()) {
      text << name << " is missing\n";
    } else if (!at::equal(found->second, tensor)) {
      text << name << " differs by " << (found->second - tensor).abs().max().item<double>() << "\n";
    }
  }
  if (!text.str().empty()) throw std::runtime_error(text.str());
}

namespace {

/// Chunks so small that shards take several.
Offload on_disk() { return {.place = Offload::Place::Disk, .path = std::filesystem::temp_directory_path(), .chunk_bytes = 4096, .num_buffers = 2}; }

}  // namespace

ShardCase case_from(const std::string& text) {
  ShardCase c;
  std::istringstream words{text};
  for (std::string word; std::getline(words, word, ',');) {
    const auto equals = word.find('=');
    const auto key = word.substr(0, equals);
    const auto value = equals == std::string::npos || std::isalpha(static_cast<unsigned char>(word[equals + 1])) ? 0 : std::stod(word.substr(equals + 1));
    if (key == "replicate") c.sharding.strategy = ShardingStrategy::Replicate;
    else if (key == "zero1") c.sharding.strategy = ShardingStrategy::ShardOptimizer;
    else if (key == "zero2") c.sharding.strategy = ShardingStrategy::ShardGradients;
    else if (key == "zero3") c.sharding.strategy = ShardingStrategy::ShardParameters;
    else if (key == "reshard") c.sharding.reshard_after_forward = value != 0;
    else if (key == "prefetch") c.sharding.forward_prefetch = c.sharding.backward_prefetch = value != 0;
    else if (key == "group") c.sharding.shard_group_size = static_cast<int>(value);
    else if (key == "persist") c.sharding.persistence_threshold = static_cast<std::int64_t>(value);
    else if (key == "bucket") c.sharding.reduce_bucket_elements = static_cast<std::int64_t>(value);
    else if (key == "nowrap") c.sharding.wrap.kind = WrapPolicy::Kind::NoWrap;
    else if (key == "debug") c.sharding.debug = true;
    else if (word == "offload=host") c.sharding.offload_optimizer.place = Offload::Place::Host;
    else if (word == "offload=disk_params") c.sharding.offload_optimizer = c.sharding.offload_params = on_disk();
    else if (word == "offload=disk") c.sharding.offload_optimizer = on_disk();
    else if (key == "dropout") c.dropout = value;
    else if (key == "blocks") c.blocks = static_cast<int>(value);
    else if (key == "steps") c.steps = static_cast<int>(value);
    else if (key == "scale") c.loss_scale.initial = value;
    else if (key == "recompute") c.sharding.activation_checkpointing = true;
    else if (key == "to_host") c.sharding.activation_checkpointing_offload = true;
    else if (key == "accumulation") c.accumulation = static_cast<int>(value);
    else if (key == "clip") c.clip = value;
    else if (key == "bf16") c.precision = Precision::BF16;
    else if (key == "fp16") c.precision = Precision::FP16;
    else if (key == "zeroed") c.set_to_none = false;
    else throw std::runtime_error("unknown word " + word);
  }
  return c;
}

}  // namespace troupe::test

#include "shard_run.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/equal.h>
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

OddNet make_net() {
  set_seed(7);
  return OddNet{kVocabulary, kWidth, 3};
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

AdamW make_optimizer(OddNet& net) {
  std::vector<ParamGroup> groups(2);
  groups[1].weight_decay = 0;
  for (const auto& item : net->named_parameters()) {
    if (item.value().requires_grad()) groups[item.value().dim() == 1].params.push_back(item.value());
  }
  return AdamW{std::move(groups), {.lr = 1e-2, .weight_decay = 0.1}};
}

}  // namespace

OddBlockImpl::OddBlockImpl(std::int64_t width, bool uses)
    : up(register_module("up", torch::nn::Linear(width, width + 1))),
      down(register_module("down", torch::nn::Linear(width + 1, width))),
      norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})))),
      spare(register_parameter("spare", at::ones({3, width}))),
      frozen(register_parameter("frozen", at::ones({width}), /*requires_grad=*/false)),
      uses_spare(uses) {
  const at::NoGradGuard no_grad;
  for (auto& p : parameters()) {
    if (p.requires_grad()) p.normal_(0, 0.4, rank_generator());
  }
}

at::Tensor OddBlockImpl::forward(const at::Tensor& x) {
  auto y = x + down(at::tanh(up(norm(x)))) * frozen;
  return uses_spare ? y + spare.sum(0) : y;
}

OddNetImpl::OddNetImpl(std::int64_t vocabulary, std::int64_t width, int num_blocks)
    : embedding(register_module("embedding", torch::nn::Embedding(vocabulary, width))), scale(register_buffer("scale", at::ones({1}))) {
  const at::NoGradGuard no_grad;
  embedding->weight.normal_(0, 0.4, rank_generator());
  for (int i = 0; i < num_blocks; ++i) blocks.push_back(register_module("block" + std::to_string(i), OddBlock(width, i % 2 == 0)));
}

at::Tensor OddNetImpl::forward(const at::Tensor& ids) {
  auto x = embedding(ids) * scale;
  for (auto& block : blocks) x = block(x);
  return at::linear(x, embedding->weight);
}

ShardResult train_sharded(TrainContext& context, const ShardCase& c) {
  Accelerator accelerator{context, {.mixed_precision = c.precision, .gradient_accumulation_steps = c.accumulation,
                           .ddp = {.find_unused_parameters = true}, .sharding = c.sharding}};
  auto net = make_net();
  auto optimizer = make_optimizer(net);
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
        result.norms.push_back(accelerator.clip_grad_norm(net->parameters(), c.clip > 0 ? c.clip : std::numeric_limits<double>::infinity()));
      }
      optimizer.step();
      optimizer.zero_grad(c.set_to_none);
    }
  }
  if (!c.gathers_result) return result;
  for (auto& [name, tensor] : accelerator.get_state_dict(net)) result.parameters[name] = tensor.clone();
  return result;
}

ShardResult train_alone(const ShardCase& c, int ranks) {
  auto net = make_net();
  auto optimizer = make_optimizer(net);
  std::vector<at::Tensor> trained;
  for (auto& p : net->parameters()) {
    if (p.requires_grad()) trained.push_back(p);
  }
  const auto count = trained.size();
  const int group = c.sharding.shard_group_size ? c.sharding.shard_group_size : ranks;
  const bool sums_windows_first = c.sharding.strategy == ShardingStrategy::ShardOptimizer || c.sharding.strategy == ShardingStrategy::Replicate;
  const auto add = [&](std::vector<at::Tensor>& sum, const std::vector<at::Tensor>& more) {
    for (std::size_t i = 0; i < count; ++i) {
      if (!sum[i].defined()) sum[i] = more[i].defined() ? more[i].clone() : at::Tensor{};
      else if (more[i].defined()) sum[i].add_(more[i]);
    }
  };
  const auto divide = [](std::vector<at::Tensor>& sum, int by) {
    for (auto& tensor : sum) {
      if (tensor.defined()) tensor.div_(by);
    }
  };
  const auto reduce = [&](const std::vector<std::vector<at::Tensor>>& of_rank) {
    std::vector<at::Tensor> total(count);
    for (int first = 0; first < ranks; first += group) {
      std::vector<at::Tensor> sum(count);
      for (int r = first; r < first + group; ++r) add(sum, of_rank[static_cast<std::size_t>(r)]);
      divide(sum, group);
      add(total, sum);
    }
    divide(total, ranks / group);
    return total;
  };
  ShardResult result;
  for (int step = 0; step < c.steps; ++step) {
    std::vector<std::vector<at::Tensor>> windows(static_cast<std::size_t>(ranks), std::vector<at::Tensor>(count));
    std::vector<at::Tensor> total(count);
    for (int m = 0; m < c.accumulation; ++m) {
      std::vector<std::vector<at::Tensor>> now;
      for (int r = 0; r < ranks; ++r) {
        optimizer.zero_grad();
        const auto loss = loss_of(net, batch(step, m, r));
        if (r == 0) result.losses.push_back(loss.item<double>());
        (c.accumulation == 1 ? loss : loss * (1.0 / c.accumulation)).backward();
        auto& grads = now.emplace_back();
        const at::NoGradGuard no_grad;
        for (const auto& p : trained) grads.push_back(p.grad().defined() ? p.grad().clone() : at::Tensor{});
      }
      const at::NoGradGuard no_grad;
      for (std::size_t r = 0; r < now.size(); ++r) add(windows[r], now[r]);
      if (!sums_windows_first) add(total, reduce(now));
    }
    const at::NoGradGuard no_grad;
    if (sums_windows_first) total = reduce(windows);
    double squares = 0;
    for (std::size_t i = 0; i < count; ++i) {
      trained[i].mutable_grad() = total[i];
      if (total[i].defined()) squares += total[i].to(at::kDouble).square().sum().item<double>();
    }
    const double norm = std::sqrt(squares);
    result.norms.push_back(norm);
    if (c.clip > 0 && c.clip / (norm + 1e-6) < 1) {
      for (auto& grad : total) {
        if (grad.defined()) grad.mul_(static_cast<float>(c.clip / (norm + 1e-6)));
      }
    }
    optimizer.step();
  }
  for (const auto& item : net->named_parameters()) result.parameters[item.key()] = item.value().detach().clone();
  return result;
}

void expect_equal(const ShardResult& ours, const ShardResult& reference) {
  std::ostringstream text;
  text.precision(12);
  for (std::size_t s = 0; s < reference.losses.size(); ++s) {
    if (ours.losses.at(s) != reference.losses[s]) text << "loss " << s << " is " << ours.losses[s] << ", alone " << reference.losses[s] << "\n";
  }
  for (std::size_t s = 0; s < reference.norms.size(); ++s) {
    if (std::abs(ours.norms.at(s) - reference.norms[s]) > 1e-9 * reference.norms[s]) {
      text << "norm " << s << " is " << ours.norms[s] << ", alone " << reference.norms[s] << "\n";
    }
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
    else if (word == "offload=disk") c.sharding.offload_optimizer = {.place = Offload::Place::Disk, .path = std::filesystem::temp_directory_path(), .chunk_bytes = 8192};
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

// Trains a small model on a cluster's nodes, or on this host; prints its curve and a digest of its weights. For tests/cluster.
//   cluster_train --storage DIR [--ranks 6] [--strategy ddp|zero3] [--placement nodes|processes|threads] …
// With TROUPE_CLUSTER_LISTEN it is a head (troupe launch sets it).
#include "cluster_run.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/unit.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tanh.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <thread>

namespace {

using namespace troupe;

constexpr std::int64_t num_classes = 11, width = 24;
constexpr int num_samples = 480;

struct BlockImpl : Unit {
  BlockImpl() : linear(register_module("linear", torch::nn::Linear(width, width))) {
    const at::NoGradGuard no_grad;
    for (auto& p : parameters()) p.normal_(0, 0.3, rank_generator());
  }
  at::Tensor forward(const at::Tensor& x) { return x + at::tanh(linear(x)); }
  torch::nn::Linear linear;
};
TROUPE_UNIT(Block);

/// Ids [B] to scores [B, 11]; no dropout and no running statistics, so that a batch's mean gradient does not depend on how ranks divide it.
struct NetImpl : Unit {
  NetImpl() : embedding(register_module("embedding", torch::nn::Embedding(num_samples, width))), head(register_module("head", torch::nn::Linear(width, num_classes))) {
    const at::NoGradGuard no_grad;
    for (auto& p : parameters()) p.normal_(0, 0.3, rank_generator());
    for (int i = 0; i < 3; ++i) blocks.push_back(register_module("block" + std::to_string(i), Block()));
  }
  at::Tensor forward(const at::Tensor& ids) {
    auto x = embedding(ids);
    for (auto& block : blocks) x = block(x);
    return head(x);
  }
  torch::nn::Embedding embedding;
  std::vector<Block> blocks;
  torch::nn::Linear head;
};
TROUPE_UNIT(Net);

class Ids final : public MapDataset {
 public:
  [[nodiscard]] std::size_t size() const override { return num_samples; }
  [[nodiscard]] TensorDict get(std::size_t index) const override {
    const auto i = static_cast<std::int64_t>(index);
    return {{"id", at::scalar_tensor(i, at::kLong)}, {"label", at::scalar_tensor((i * 7 + i / 3) % num_classes, at::kLong)}};
  }
};

struct Counter {
  int& value;
  [[nodiscard]] std::string state_dict() const { return std::to_string(value); }
  void load_state_dict(const std::string& bytes) { value = std::stoi(bytes); }
};

std::string digest_of(Accelerator& accelerator, Net& net) {
  std::uint64_t hash = 14695981039346656037ULL;  // FNV-1a
  for (const auto& [name, tensor] : accelerator.get_state_dict(*net.ptr())) {
    const auto flat = tensor.contiguous();
    const auto* bytes = static_cast<const unsigned char*>(flat.const_data_ptr());
    for (std::size_t i = 0; i < flat.nbytes(); ++i) hash = (hash ^ bytes[i]) * 1099511628211ULL;
  }
  return std::to_string(hash);
}

void train(TrainContext& context, const Config& config) {
  const int updates = config.get<int>("updates"), checkpoint_every = config.get<int>("checkpoint_every");
  const std::chrono::milliseconds pause{config.get<int>("step_ms")};
  AcceleratorOptions options;
  if (config.get<std::string>("strategy") == "zero3") options.sharding.strategy = ShardingStrategy::ShardParameters;
  Accelerator accelerator{context, options};
  set_seed(3);
  Net net;
  AdamW optimizer{net->parameters(), AdamWOptions{.lr = 5e-3}};
  DataLoader loader{std::make_shared<Ids>(), {.batch_size = config.get<int>("batch"), .shuffle = true}};
  accelerator.prepare(net, optimizer, loader);
  int update = 0;
  Counter counter{update};
  accelerator.register_for_checkpointing(counter);
  if (const auto checkpoint = context.get_checkpoint()) accelerator.load_state(checkpoint->path());
  while (update < updates) {
    for (const auto& batch : loader) {
      const auto loss = at::cross_entropy_loss(net(batch["id"]), batch["label"]);
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      ++update;
      std::this_thread::sleep_for(pause);
      const Metrics metrics{{"update", update}, {"loss", loss.item<double>()}};
      if (checkpoint_every > 0 && update % checkpoint_every == 0) context.report(metrics, accelerator.checkpoint());
      else context.report(metrics);
      if (context.should_stop()) return;
      if (update == updates) break;
    }
  }
  const auto digest = digest_of(accelerator, net);
  if (context.world_rank() == 0) context.report({{"digest", digest}});
}

}  // namespace

int main(int argc, char** argv) { return troupe::test::cluster_main(argc, argv, "cluster_train", train); }

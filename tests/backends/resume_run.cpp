#include "resume_run.hpp"

#include <troupe/checkpoint_files.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <stdexcept>

namespace troupe::test {

namespace {

constexpr std::int64_t kClasses = 11;

std::unique_ptr<Optimizer> make(Kind kind, std::vector<at::Tensor> parameters) {
  switch (kind) {
    case Kind::AdamW: return std::make_unique<AdamW>(std::move(parameters), AdamWOptions{.lr = 1e-2});
    case Kind::Adam: return std::make_unique<Adam>(std::move(parameters), AdamOptions{.lr = 1e-2});
    case Kind::SGD: return std::make_unique<SGD>(std::move(parameters), SGDOptions{.lr = 1e-2, .momentum = 0.9});
    case Kind::Adagrad: return std::make_unique<Adagrad>(std::move(parameters), AdagradOptions{.initial_accumulator_value = 0.1});
    case Kind::Lion: return std::make_unique<Lion>(std::move(parameters), LionOptions{.lr = 1e-3});
  }
  throw std::logic_error("kind");
}

AcceleratorOptions options_of(const ResumeCase& c) {
  return {.mixed_precision = c.precision, .gradient_accumulation_steps = c.accumulation, .sharding = c.sharding, .checkpoint = c.checkpoint, .project_config = c.project, .bad_numbers = c.bad_numbers};
}

}  // namespace

TensorDict Ids::get(std::size_t index) const {
  const auto i = static_cast<std::int64_t>(index);
  return {{"id", at::scalar_tensor(i % kClasses, at::kLong)}, {"label", at::scalar_tensor((i * 7 + i / 3) % kClasses, at::kLong)}};
}

TempDirectory::TempDirectory() {
  char name[] = "/tmp/troupe-resume-XXXXXX";
  path = ::mkdtemp(name);
}
TempDirectory::~TempDirectory() { std::filesystem::remove_all(path); }

DropBlockImpl::DropBlockImpl(std::int64_t width) : linear(register_module("linear", torch::nn::Linear(width, width))) {
  const at::NoGradGuard no_grad;
  for (auto& p : parameters()) p.normal_(0, 0.4, rank_generator());
}

at::Tensor DropBlockImpl::forward(const at::Tensor& x) {
  const auto y = at::tanh(linear(x));
  return x + y * (at::rand(y.sizes(), rank_generator(), at::TensorOptions().dtype(at::kFloat)) > 0.3).to(y.scalar_type());
}

DropNetImpl::DropNetImpl(std::int64_t width)
    : embedding(register_module("embedding", torch::nn::Embedding(kClasses, width))),
      norm(register_module("norm", torch::nn::BatchNorm1d(torch::nn::BatchNorm1dOptions(width).affine(false)))),
      head(register_parameter("head", embedding->weight)),
      bias(register_parameter("bias", at::zeros({kClasses}))) {
  const at::NoGradGuard no_grad;
  embedding->weight.normal_(0, 0.4, rank_generator());
  for (int i = 0; i < 2; ++i) blocks.push_back(register_module("block" + std::to_string(i), DropBlock(width)));
}

at::Tensor DropNetImpl::forward(const at::Tensor& ids) {
  auto x = embedding(ids);
  for (auto& block : blocks) x = block(x);
  return at::linear(norm(x.to(at::kFloat)).to(head.scalar_type()), head, bias);
}

ResumeCase sharded(ShardingStrategy strategy, int group) {
  ResumeCase c;
  c.sharding.strategy = strategy;
  c.sharding.shard_group_size = group;
  c.name = "strategy_" + std::to_string(static_cast<int>(strategy)) + (group ? "_groups_of_" + std::to_string(group) : "");
  return c;
}

Training::Training(TrainContext& context, const ResumeCase& given)
    : c(given), accelerator(context, options_of(given)), loader(std::make_shared<Ids>(given.num_samples), {.batch_size = 2, .shuffle = true, .num_workers = given.workers}) {
  set_seed(c.seed);
  net = DropNet(c.width);
  for (auto& parameter : net->parameters()) {
    if (c.half_parameters) parameter.set_data(parameter.detach().to(at::kBFloat16));
  }
  set_seed(c.seed, true, context.world_rank());
  for (const auto& parameter : net->parameters()) {
    const auto same = [&](const at::Tensor& other) { return other.is_same(parameter); };
    if (std::none_of(parameters.begin(), parameters.end(), same)) parameters.push_back(parameter);
  }
  optimizer = make(c.kind, parameters);
  scheduler = std::make_unique<LRScheduler>(get_linear_schedule_with_warmup(*optimizer, 3, 60));
  accelerator.prepare(net, *optimizer, *scheduler, loader);
}

double Training::step(const Batch& batch) {
  const auto window = accelerator.accumulate();
  const auto loss = [&] {
    const auto scope = accelerator.autocast();
    return at::cross_entropy_loss(net(batch["id"]).to(at::kFloat), batch["label"]);
  }();
  accelerator.backward(loss);
  accelerator.clip_grad_norm(parameters, 1.0);
  optimizer->step();
  scheduler->step();
  optimizer->zero_grad();
  if (accelerator.sync_gradients()) ++num_updates;
  return loss.item<double>();
}

void Training::train(int updates) {
  const int end = num_updates + updates;
  while (num_updates < end) {
    for (const auto& batch : loader) {
      step(batch);
      if (num_updates == end) break;
    }
  }
}

std::map<std::string, std::string> contents_of(const std::filesystem::path& checkpoint) {
  std::map<std::string, std::string> contents;
  const CheckpointReader reader{checkpoint};
  for (const auto& stem : reader.stems()) {
    for (const auto& tensor : reader.tensors(stem)) {
      const auto* stored = reader.manifest().find_tensor(stem, tensor.name);
      std::string bytes(stored->bytes, '\0');
      const ReadRange range{tensor.name, 0, std::as_writable_bytes(std::span{bytes})};
      reader.read(stem, {&range, 1});
      auto text = std::string{name(tensor.dtype)};
      for (const auto size : tensor.shape) text += " " + std::to_string(size);
      contents[stem + "/" + tensor.name] = text + ": " + bytes;
    }
  }
  return contents;
}

}  // namespace troupe::test

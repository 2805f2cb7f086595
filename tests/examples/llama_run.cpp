#include "llama_run.hpp"

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <limits>
#include <troupe/linear.hpp>
#include <troupe/random.hpp>
#include <troupe/tensor_files.hpp>

#include "fake_context.hpp"
#include "golden.hpp"

namespace troupe::test {

namespace {

constexpr std::int64_t rows_a_step = 8;
constexpr std::int64_t num_steps = 20;

LlamaForCausalLM load(const LlamaRun& run) {
  const auto folder = golden("d_llama");
  auto model = LlamaForCausalLM::from_pretrained(run.model.empty() ? folder / "model" : run.model, {.deferred = run.deferred});
  if (!run.lora) return model;
  load_adapter(*model, folder / "adapter_init");
  for (auto& module : model->modules()) {
    if (auto* layer = dynamic_cast<LinearImpl*>(module.get()); layer && layer->adapter()) layer->adapter()->dropout = run.dropout;
  }
  return model;
}

}  // namespace

LlamaCurve train_llama(TrainContext& context, const LlamaRun& run) {
  Accelerator accelerator{context, {.mixed_precision = run.precision,
                                    .gradient_accumulation_steps = run.micro_batches,
                                    .sharding = run.sharding}};
  const auto data = read_safetensors(golden("d_llama") / "batches.safetensors").at("input_ids");
  rank_generator().set_current_seed(static_cast<std::uint64_t>(17 + context.world_rank()));
  auto model = load(run);
  LlamaCurve curve;
  curve.num_trained = count_parameters(*model).trained;
  AdamW optimizer{trainable_parameters(*model), {.lr = run.lora ? 5e-3 : 1e-3, .weight_decay = 0.01}};
  auto scheduler = get_linear_schedule_with_warmup(optimizer, 2, num_steps);
  accelerator.prepare(model, optimizer, scheduler);
  model->train();
  std::int64_t first = 0;
  if (!run.load_from.empty()) {
    (void)accelerator.load_state(run.load_from);
    first = scheduler.last_step();
  }
  const auto rows = rows_a_step / context.world_size() / run.micro_batches;
  for (auto step = first; step < run.stop_after; ++step) {
    double loss_sum = 0;
    for (int m = 0; m < run.micro_batches; ++m) {
      const auto window = accelerator.accumulate();
      const auto place = m * context.world_size() + context.world_rank();
      const auto ids = data.narrow(0, step * rows_a_step + place * rows, rows);
      at::Tensor loss;
      {
        const auto scope = accelerator.autocast();
        loss = model({{"input_ids", ids}, {"labels", ids}}).loss;
      }
      accelerator.backward(loss);
      loss_sum += accelerator.reduce(loss.detach().to(at::kDouble), ReduceOp::Mean).item<double>();
      if (accelerator.sync_gradients()) {
        curve.lrs.push_back(optimizer.lr());
        curve.norms.push_back(accelerator.clip_grad_norm(model->parameters(), run.clip ? 1.0 : std::numeric_limits<double>::infinity()));
      }
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
    }
    curve.losses.push_back(loss_sum / run.micro_batches);
    if (!run.save_to.empty() && step + 1 == run.save_after) accelerator.save_state(run.save_to);
  }
  for (const auto& [name, tensor] : accelerator.get_state_dict(model, /*trained_only=*/true)) curve.trained[name] = tensor.clone();
  return curve;
}

LlamaCurve train_llama(int ranks, const LlamaRun& run) {
  LlamaCurve curve;
  run_ranks(ranks, [&](TrainContext& context) {
    auto mine = train_llama(context, run);
    if (context.world_rank() == 0) curve = std::move(mine);
  });
  return curve;
}

}  // namespace troupe::test

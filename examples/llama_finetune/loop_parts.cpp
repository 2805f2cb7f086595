#include "loop_parts.hpp"

#include <troupe/token_dataset.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace troupe::detail {

namespace {

/// Sums over ranks.
template <std::size_t N>
std::array<double, N> summed(Accelerator& accelerator, const std::array<double, N>& values) {
  const auto sums = accelerator.reduce(at::tensor(at::ArrayRef<double>(values.data(), N), at::TensorOptions().dtype(at::kDouble)));
  std::array<double, N> out;
  std::copy_n(sums.template const_data_ptr<double>(), N, out.begin());
  return out;
}

}  // namespace

double Evaluation::perplexity() const { return std::exp(loss); }

Evaluation evaluate(Accelerator& accelerator, LlamaForCausalLM& model, const FinetuneData& data, std::int64_t batch_size, std::int64_t max_batches) {
  const at::NoGradGuard no_grad;
  model->eval();
  const auto rows = static_cast<std::int64_t>(data.test->size()), ranks = static_cast<std::int64_t>(accelerator.num_processes());
  const auto batches = (rows + batch_size - 1) / batch_size;
  auto rounds = (batches + ranks - 1) / ranks;
  if (max_batches > 0) rounds = std::min(rounds, max_batches);
  double loss_sum = 0, targets = 0;
  for (std::int64_t round = 0; round < rounds; ++round) {
    const auto mine = round * ranks + accelerator.process_index();
    const bool counts = mine < batches;
    const auto first = counts ? mine * batch_size : 0;
    const auto count = counts ? std::min(batch_size, rows - first) : 1;
    const auto batch = to_batch(std::span{*data.test}.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), data.pad_id);
    const auto scope = accelerator.autocast();
    const auto output = model(batch);
    if (!counts) continue;
    loss_sum += output.loss.item<double>() * static_cast<double>(output.num_targets);
    targets += static_cast<double>(output.num_targets);
  }
  model->train();
  const auto [loss, count] = summed<2>(accelerator, {loss_sum, targets});
  return {loss / count};
}

StepMeter::StepMeter(Accelerator& accelerator, const LlamaFinetuneOptions& options, const LlamaConfig& config)
    : accelerator_(accelerator),
      flops_per_token_(config.flops_per_token(options.ctx_len, options.lora)),
      peak_flops_(options.peak_tflops > 0 ? options.peak_tflops * 1e12 : measured_flops(precision_from(options.mx))) {}

void StepMeter::add(const at::Tensor& loss, std::int64_t targets, std::int64_t tokens) {
  loss_sum_ += loss.item<double>() * static_cast<double>(targets);
  targets_ += static_cast<double>(targets);
  tokens_ += static_cast<double>(tokens);
}

Metrics StepMeter::finish(std::int64_t epoch, std::int64_t iteration, double lr) {
  const auto [loss, targets, tokens] = summed<3>(accelerator_, {loss_sum_, targets_, tokens_});
  const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  loss_ = loss / targets;
  tokens_per_s_ = tokens / seconds;
  const auto flops = tokens_per_s_ * flops_per_token_ / accelerator_.num_processes();
  Metrics metrics{{"epoch", epoch},           {"iteration", iteration},      {"train_loss", loss_},          {"learning_rate", lr}, {"fwd_time", times.forward},
                  {"bwd_time", times.backward}, {"optim_time", times.optimizer}, {"step_time", seconds}, {"tokens_per_s", tokens_per_s_}, {"tflops", flops / 1e12}, {"mfu", flops / peak_flops_}};
  loss_sum_ = targets_ = tokens_ = 0;
  times = {};
  restart();
  return metrics;
}

}  // namespace troupe::detail

#pragma once

#include <troupe/accelerator.hpp>
#include <troupe/bert.hpp>
#include <troupe/pair_scores.hpp>
#include <troupe/train_context.hpp>
#include <troupe/wordpiece.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

namespace troupe {

/// What fine-tuning on sentence pairs is made of, wherever the batches come from.
class PairTraining {
 public:
  /// Reads the configuration's keys but those of the data, and the model's files.
  PairTraining(TrainContext& context, const Config& config);

  TrainContext& context;
  int epochs;
  std::int64_t batch_size, eval_batch_size, max_length;
  std::uint64_t seed;
  Accelerator accelerator;
  BertForSequenceClassification model{nullptr};
  WordPiece tokenizer;
  AdamW optimizer;

  /// Trains and evaluates to the end, or until the run is to stop. Model, optimizer and data are prepared.
  /// @param train, eval ranges of batches, one epoch each time. @param steps of an epoch. @param epoch that comes next, or is under way.
  template <class Train, class Eval>
  void run(Train& train, Eval& eval, std::int64_t steps, const std::function<std::int64_t()>& epoch) {
    begin(steps, epoch);
    for (auto now = epoch(); now < epochs; now = epoch()) {
      loss_sum_ = 0, steps_ = 0, shown_.epoch = static_cast<int>(now) + 1;
      for (const auto& batch : train) {
        step(batch);
        // Interrupted or preempted: the next start goes on with the next batch.
        if (accelerator.sync_gradients() && context.should_stop()) return report({{"epoch", now + 1}});
      }
      std::optional<double> data_wait;  // share of the steps' time
      if constexpr (requires { train.stats().wait_share(); }) data_wait = train.stats().wait_share();
      auto metrics = evaluate(eval);
      if (data_wait) metrics.set({"data_wait", *data_wait});
      metrics.set({"epoch", now + 1});
      metrics.set({"loss", loss_sum_ / static_cast<double>(std::max<std::int64_t>(steps_, 1))});
      report(metrics);
    }
  }

 private:
  void begin(std::int64_t steps, const std::function<std::int64_t()>& epoch);
  void step(const Batch& batch);
  void report(const Metrics& metrics);
  /// Accuracy, F1 of label 1 and mean loss over the whole evaluation split; the same numbers on every rank.
  template <class Eval>
  Metrics evaluate(Eval& eval) {
    at::NoGradGuard no_grad;
    model->eval();
    PairScores scores;
    double loss_sum = 0;
    std::int64_t batches = 0;
    for (const auto& batch : eval) {
      const auto scope = accelerator.autocast();
      const auto output = model(batch);
      const auto predicted = accelerator.gather_for_metrics(at::argmax(output.logits_BC, -1));
      const auto labels = accelerator.gather_for_metrics(batch["labels"]);
      scores.add(predicted, labels);
      loss_sum += accelerator.reduce(output.loss.to(at::kFloat), ReduceOp::Mean).template item<double>();
      ++batches;
    }
    model->train();
    return {{"accuracy", scores.accuracy()}, {"f1", scores.f1()}, {"eval_loss", loss_sum / static_cast<double>(std::max<std::int64_t>(batches, 1))}};
  }

  const Config& config_;
  std::optional<LRScheduler> scheduler_;
  int accumulation_;
  double max_grad_norm_;
  double loss_sum_ = 0;
  std::int64_t steps_ = 0;
  Progress shown_;
  std::chrono::steady_clock::time_point last_step_;
};

}  // namespace troupe

#pragma once

#include <troupe/accelerator.hpp>
#include <troupe/llama.hpp>
#include <troupe/llama_finetune.hpp>

#include <chrono>

#include "setup.hpp"

namespace troupe::detail {

struct Evaluation {
  double loss = 0;  ///< mean over the predicted tokens of all ranks
  [[nodiscard]] double perplexity() const;
};

/// Each rank takes every world-size-th batch; where there is none left for a rank it runs one that does not count, since a sharded
/// model's forward is collective. @param max_batches a rank; 0: all.
[[nodiscard]] Evaluation evaluate(Accelerator& accelerator, LlamaForCausalLM& model, const FinetuneData& data, std::int64_t batch_size, std::int64_t max_batches = 0);

/// Seconds that the phases of one update took, micro-batches added up.
struct StepTimes {
  double forward = 0, backward = 0, optimizer = 0;
};

/// Adds the seconds it lives to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  ~Stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& sum_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// What a window of micro-batches came to, and what rank 0 tells of it.
class StepMeter {
 public:
  StepMeter(Accelerator& accelerator, const LlamaFinetuneOptions& options, const LlamaConfig& config);
  void add(const at::Tensor& loss, std::int64_t targets, std::int64_t tokens);
  /// At the end of a window. Collective: sums over ranks. @return epoch, iteration, train_loss, learning_rate, times, rates.
  [[nodiscard]] Metrics finish(std::int64_t epoch, std::int64_t iteration, double lr);
  /// Time from here on belongs to the next step: after evaluation or a checkpoint.
  void restart() { begin_ = std::chrono::steady_clock::now(); }
  [[nodiscard]] double loss() const noexcept { return loss_; }
  [[nodiscard]] double tokens_per_s() const noexcept { return tokens_per_s_; }
  StepTimes times;

 private:
  Accelerator& accelerator_;
  double flops_per_token_, peak_flops_;
  double loss_sum_ = 0, targets_ = 0, tokens_ = 0, loss_ = 0, tokens_per_s_ = 0;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace troupe::detail

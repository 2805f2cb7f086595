#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>
#include <troupe/llama_cost.hpp>

#include <optional>
#include <string>

namespace troupe::tools {

/// What `troupe estimate-memory` is told about a training step, for activations and time.
struct StepOptions {
  std::int64_t batch_size = 0;  ///< rows a rank; 0: no activations, no time
  std::int64_t ctx_len = 512;
  std::int64_t lora_r = 0;
  int grad_accum = 1;
  bool no_grad_ckpt = false;
  double tflops = 0;       ///< that a device sustains
  std::string run;         ///< a run of llama_finetune, whose reports say it
  double peak_tflops = 0;
  double bandwidth_gb = 0; ///< a rank's, to the others
};

struct StepEstimate {
  std::int64_t activations = 0;           ///< bytes
  double flops_per_token = 0;             ///< useful ones
  double tflops = 0;                      ///< useful ones a device sustains; 0: unknown
  std::optional<double> compute_seconds;  ///< of an update
  std::optional<double> traffic_seconds;
  std::optional<double> mfu;
  [[nodiscard]] std::optional<double> seconds() const;  ///< communication runs beside computing
};

void add_step_options(CLI::App& command, StepOptions& options);
[[nodiscard]] StepEstimate estimate_step(const LlamaShape& shape, const ModelSize& model, const StepOptions& options, int ranks, bool sixteen_bit);
void print_step(const StepEstimate& estimate, const StepOptions& options, int ranks);
[[nodiscard]] nlohmann::ordered_json json_of(const StepEstimate& estimate, const StepOptions& options, int ranks);

}  // namespace troupe::tools

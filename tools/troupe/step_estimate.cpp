#include "step_estimate.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

namespace troupe::tools {

namespace {

/// Median of what the run's reports say a device sustained.
double tflops_of_run(const std::string& run) {
  const auto file = std::filesystem::path{run} / "reports.jsonl";
  std::ifstream in{file};
  if (!in) throw Failure{Errc::FileNotFound, file.string() + ": there are no reports; --run names the directory of a run"};
  std::vector<double> values;
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("metrics") || !json["metrics"].is_object()) continue;
    if (const auto& metrics = json["metrics"]; metrics.contains("tflops") && metrics["tflops"].is_number()) values.push_back(metrics["tflops"]);
  }
  if (values.empty()) throw Failure{Errc::NotFound, file.string() + ": no report has 'tflops', which llama_finetune's have"};
  std::ranges::sort(values);
  return values[values.size() / 2];
}

std::string time_text(double seconds) {
  char text[64];
  if (seconds < 120) {
    (void)std::snprintf(text, sizeof text, "%.3g s", seconds);
  } else {
    (void)std::snprintf(text, sizeof text, "%.1f min", seconds / 60);
  }
  return text;
}

double tokens_of_update(const StepOptions& o, int ranks) { return static_cast<double>(o.batch_size * o.ctx_len) * o.grad_accum * ranks; }

}  // namespace

std::optional<double> StepEstimate::seconds() const {
  if (!compute_seconds) return std::nullopt;
  return std::max(*compute_seconds, traffic_seconds.value_or(0));
}

void add_step_options(CLI::App& command, StepOptions& o) {
  command.add_option("--batch-size", o.batch_size, "rows a rank and step: adds activations and time (of a Llama)")->check(CLI::Range(1, 1 << 20));
  command.add_option("--ctx-len", o.ctx_len, "tokens of a row")->capture_default_str()->check(CLI::Range(1, 1 << 24));
  command.add_option("--lora", o.lora_r, "train adapters of this rank on the MLP projections only")->check(CLI::Range(1, 65536));
  command.add_option("--grad-accum", o.grad_accum, "batches an update")->capture_default_str()->check(CLI::Range(1, 65536));
  command.add_flag("--no-grad-ckpt", o.no_grad_ckpt, "activations are kept");
  auto* given = command.add_option("--tflops", o.tflops, "useful TFLOP/s that a device sustains: adds the time")->check(CLI::PositiveNumber);
  command.add_option("--run", o.run, "the same as measured by a run of llama_finetune: its directory")->excludes(given);
  command.add_option("--peak-tflops", o.peak_tflops, "of a device: adds the model FLOPs utilisation")->check(CLI::PositiveNumber);
  command.add_option("--bandwidth", o.bandwidth_gb, "GB/s between ranks: adds the time of ZeRO-3's traffic")->check(CLI::PositiveNumber);
}

StepEstimate estimate_step(const LlamaShape& shape, const ModelSize& model, const StepOptions& o, int ranks, bool sixteen_bit) {
  const StepShape step{o.batch_size, o.ctx_len, !o.no_grad_ckpt, o.lora_r > 0, sixteen_bit ? 2 : 4};
  StepEstimate out;
  out.activations = activation_bytes(shape, step);
  out.flops_per_token = flops_per_token(shape, o.ctx_len, o.lora_r > 0);
  out.tflops = o.run.empty() ? o.tflops : tflops_of_run(o.run);
  if (o.bandwidth_gb > 0) out.traffic_seconds = o.grad_accum * zero3_traffic_bytes(model, ranks, step.bytes, 4) / (o.bandwidth_gb * 1e9);
  if (out.tflops > 0) {
    out.compute_seconds = tokens_of_update(o, 1) * out.flops_per_token / (out.tflops * 1e12);
    if (o.peak_tflops > 0) out.mfu = tokens_of_update(o, ranks) / *out.seconds() * out.flops_per_token / (o.peak_tflops * 1e12 * ranks);
  }
  return out;
}

void print_step(const StepEstimate& e, const StepOptions& o, int ranks) {
  std::printf("\nA step of %lld x %lld tokens a rank%s: activations %.1f MiB (to be added to the peak), %.4g GFLOP a token\n", static_cast<long long>(o.batch_size),
              static_cast<long long>(o.ctx_len), o.no_grad_ckpt ? "" : ", layers run again in backward", static_cast<double>(e.activations) / (1 << 20), e.flops_per_token / 1e9);
  if (const auto seconds = e.seconds()) {
    std::printf("An update of %.0f tokens at %.4g TFLOP/s a device: %s, %.4g tokens/s", tokens_of_update(o, ranks), e.tflops, time_text(*seconds).c_str(), tokens_of_update(o, ranks) / *seconds);
    if (e.mfu) std::printf(", MFU %.1f %%", 100 * *e.mfu);
    std::printf("\n");
  }
  if (e.traffic_seconds) std::printf("ZeRO-3 moves %s a rank and update, beside computing\n", time_text(*e.traffic_seconds).c_str());
}

nlohmann::ordered_json json_of(const StepEstimate& e, const StepOptions& o, int ranks) {
  nlohmann::ordered_json json{{"batch_size", o.batch_size}, {"ctx_len", o.ctx_len}, {"activations", e.activations}, {"flops_per_token", e.flops_per_token}};
  if (e.tflops > 0) json["tflops"] = e.tflops;
  if (e.compute_seconds) json["compute_s"] = *e.compute_seconds;
  if (e.traffic_seconds) json["traffic_s"] = *e.traffic_seconds;
  if (const auto seconds = e.seconds()) {
    json["seconds"] = *seconds;
    json["tokens_per_s"] = tokens_of_update(o, ranks) / *seconds;
  }
  if (e.mfu) json["mfu"] = *e.mfu;
  return json;
}

}  // namespace troupe::tools

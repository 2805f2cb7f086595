// Fine-tuning SmolLM2-135M on the King James text as `make llama` does it, for bench/run: 2 ranks of 1 thread, rows of 128 tokens.
//
//   llama_run_bench [--full] [--steps 12] [--ranks processes|threads] [--mx bf16|no] [--batch 2] [--param-dtype f32|auto]
//
// Prints one line of JSON: {"step_s", "cpu_s", "tokens_per_s", "peak_bytes", "start_s", "first_step_s"}: medians after two steps; processor time of all
// ranks and steps over their number; the larger rank's peak memory (of processes); from this program's start to the beginning, and the end, of the first step.
// Needs what `tools/bootstrap smollm2 kjv` brings.
#include <troupe/llama_finetune.hpp>
#include <troupe/troupe.hpp>

#include <CLI/CLI.hpp>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

namespace {

namespace fs = std::filesystem;

/// Seconds since the kernel started this process: what loading LibTorch took is part of it.
double seconds_since_start() {
  std::ifstream stat{"/proc/self/stat"};
  std::string text{std::istreambuf_iterator<char>{stat}, {}};
  std::istringstream fields{text.substr(text.rfind(')') + 2)};
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) - std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double processor_seconds(int who) {
  rusage usage{};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::int64_t peak_bytes(int who) {
  rusage usage{};
  getrusage(who, &usage);
  return usage.ru_maxrss * 1024;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, {{"finetune_llama", troupe::finetune_llama}}};
  const auto before = seconds_since_start();
  const auto begin = std::chrono::steady_clock::now();

  const char* cache = std::getenv("TROUPE_CACHE");
  const fs::path root = cache ? cache : std::string(std::getenv("HOME")) + "/.cache/troupe";
  troupe::LlamaFinetuneOptions finetune;
  bool full = false;
  std::string ranks = "processes", deepspeed = TROUPE_BENCH_ZERO3;
  finetune.batch_size_per_device = 2;
  finetune.max_steps = 12;
  CLI::App app{"Fine-tuning a real Llama on two ranks.", "llama_run_bench"};
  app.add_flag("--full", full, "train the whole model, not adapters");
  app.add_option("--steps", finetune.max_steps)->check(CLI::Range(3, 100'000));
  app.add_option("--ranks", ranks)->check(CLI::IsMember({"processes", "threads"}));
  app.add_option("--mx", finetune.mx)->check(CLI::IsMember({"bf16", "no"}));
  app.add_option("--batch", finetune.batch_size_per_device);
  app.add_option("--param-dtype", finetune.param_dtype);
  CLI11_PARSE(app, argc, argv);
  finetune.model_path = root / "smollm2" / "model";
  finetune.train_path = root / "kjv" / "kjv.txt";
  finetune.ctx_len = 128;
  finetune.lora = !full;
  finetune.lr = 1e-3;
  finetune.no_grad_ckpt = true;
  finetune.as_test = false;
  finetune.test_rows = 2;  // the evaluation at the end is not measured
  finetune.eval_batch_size_per_device = 1;
  finetune.ds_config = finetune.mx == "no" ? R"({"zero_optimization": {"stage": 3}, "gradient_clipping": 1.0})" : deepspeed;

  const auto results = fs::temp_directory_path() / ("llama_run_bench-" + std::to_string(getpid()));
  troupe::TrainerOptions options;
  options.scaling.num_workers = 2;
  options.scaling.placement = ranks == "threads" ? troupe::Placement::Threads : troupe::Placement::Processes;
  options.run.name = "run";
  options.run.storage_path = results.string();
  options.run.progress = false;
  int code = 0;
  try {
    troupe::TorchTrainer trainer{session, "finetune_llama", to_config(finetune), options};
    const auto fit = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const auto result = trainer.fit();
    std::vector<double> steps, tokens;
    double first = 0, start = 0;
    for (const auto& report : result.history) {
      const auto step = report.metrics.number("step_time");
      if (!step || report.rank != 0) continue;
      if (first == 0) first = before + fit + report.time_s, start = first - *step;
      steps.push_back(*step);
      tokens.push_back(*report.metrics.number("tokens_per_s"));
    }
    if (!result.ok() || steps.size() < 3) throw troupe::Failure{troupe::Errc::Internal, result.error ? result.error->message : "no steps were reported"};
    steps.erase(steps.begin(), steps.begin() + 2);
    tokens.erase(tokens.begin(), tokens.begin() + 2);
    const auto who = ranks == "threads" ? RUSAGE_SELF : RUSAGE_CHILDREN;
    std::printf("{\"step_s\": %.6f, \"cpu_s\": %.6f, \"tokens_per_s\": %.3f, \"peak_bytes\": %lld, \"start_s\": %.4f, \"first_step_s\": %.4f}\n", median(steps),
                processor_seconds(who) / static_cast<double>(finetune.max_steps), median(tokens), static_cast<long long>(peak_bytes(who)), start, first);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llama_run_bench: %s\n", error.what());
    code = 1;
  }
  std::error_code ignored;
  fs::remove_all(results, ignored);
  return code;
}

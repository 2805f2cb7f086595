// What a Llama of SmolLM2-135M's shapes costs: a training step, whole or of adapters, and generation.
//
//   llama_bench [WHAT...] [--model DIR] [--ranks N] [--dtype f32|bf16] [--rows B] [--tokens T] [--steps N] [--new N] [--threads N] [--json FILE]
//
// WHAT: full, lora, generate; nothing: all. Without --model weights are drawn (their values change no time). Training is ZeRO-3 over ranks of
// one thread each, AdamW, B rows of T tokens a rank and step; generation one row of 16 tokens and N new ones, on --threads threads.
// Figures are medians of steps, in wall time and in the training (or generating) thread's own.
#include "control_figures.hpp"
#include "fake_context.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/errors.hpp>
#include <troupe/generate.hpp>
#include <troupe/llama.hpp>
#include <troupe/lora.hpp>
#include <troupe/random.hpp>

#include <ATen/Parallel.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/randint.h>

#include <ctime>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

namespace {

using namespace troupe;
using bench::median;
using bench::now_s;
using Json = nlohmann::ordered_json;

struct Options {
  std::vector<std::string> what;
  std::string model, json;
  int ranks = 2, threads = 1, steps = 6;
  std::int64_t rows = 4, tokens = 128, fresh = 64;
  DType dtype = DType::BF16;
};

Options parse(int argc, char** argv) {
  Options o;
  std::map<std::string, std::function<void(const std::string&)>> keys{
      {"--model", [&](const auto& v) { o.model = v; }},          {"--json", [&](const auto& v) { o.json = v; }},
      {"--ranks", [&](const auto& v) { o.ranks = std::stoi(v); }}, {"--threads", [&](const auto& v) { o.threads = std::stoi(v); }},
      {"--steps", [&](const auto& v) { o.steps = std::stoi(v); }}, {"--rows", [&](const auto& v) { o.rows = std::stoll(v); }},
      {"--tokens", [&](const auto& v) { o.tokens = std::stoll(v); }}, {"--new", [&](const auto& v) { o.fresh = std::stoll(v); }},
      {"--dtype", [&](const auto& v) {
         if (v != "f32" && v != "bf16") throw Failure{Errc::InvalidArgument, "--dtype is f32 or bf16, not " + v};
         o.dtype = v == "f32" ? DType::F32 : DType::BF16;
       }}};
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (!arg.starts_with("--")) {
      if (arg != "full" && arg != "lora" && arg != "generate") throw Failure{Errc::InvalidArgument, "'" + arg + "' is none of full, lora, generate"};
      o.what.push_back(arg);
      continue;
    }
    const auto key = keys.find(arg);
    if (key == keys.end() || i + 1 == argc) throw Failure{Errc::InvalidArgument, "'" + arg + "' is no option, or has no value"};
    key->second(argv[++i]);
  }
  if (o.what.empty()) o.what = {"full", "lora", "generate"};
  return o;
}

LlamaForCausalLM load(const Options& o, DType dtype) {
  if (!o.model.empty()) return LlamaForCausalLM::from_pretrained(o.model, {.dtype = dtype});
  LlamaConfig c;
  c.vocab_size = 49152;
  c.hidden_size = 576;
  c.intermediate_size = 1536;
  c.num_hidden_layers = 30;
  c.num_attention_heads = 9;
  c.num_key_value_heads = 3;
  c.max_position_embeddings = 8192;
  c.rms_norm_eps = 1e-5;
  c.rope_theta = 100000;
  c.tie_word_embeddings = true;
  return LlamaForCausalLM{c, dtype};
}

double processor_s() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::int64_t peak_rss_mb() {
  std::ifstream in{"/proc/self/status"};
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) / 1024;
  }
  return 0;
}

/// One figure: tokens/s over all ranks, and where the time went.
Json train(const Options& o, bool lora) {
  Json figure;
  test::run_ranks(o.ranks, [&](TrainContext& context) {
    rank_generator().set_current_seed(static_cast<std::uint64_t>(1 + context.world_rank()));
    const bool bf16 = o.dtype == DType::BF16;
    AcceleratorOptions options{.mixed_precision = bf16 ? Precision::BF16 : Precision::No};
    options.sharding.strategy = ShardingStrategy::ShardParameters;
    Accelerator accelerator{context, options};
    auto model = load(o, lora ? o.dtype : DType::F32);  // a frozen base has no masters
    const auto flops = model->config().flops_per_token(o.tokens, lora);
    if (lora) apply_lora(*model, {.r = 8, .lora_alpha = 16, .target_modules = {"q_proj", "k_proj", "v_proj", "o_proj"}});
    AdamW optimizer{trainable_parameters(*model), {.lr = 1e-4}};
    accelerator.prepare(model, optimizer);
    model->train();
    std::vector<double> wall, processor, forward;
    for (int step = 0; step <= o.steps; ++step) {
      const auto ids = at::randint(0, model->config().vocab_size, {o.rows, o.tokens}, rank_generator(), at::kLong);
      const auto begin = now_s(), begin_processor = processor_s();
      const auto loss = model({{"input_ids", ids}, {"labels", ids}}).loss;
      const auto middle = now_s();
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      if (step == 0) continue;  // warms up
      wall.push_back(now_s() - begin);
      forward.push_back(middle - begin);
      processor.push_back(processor_s() - begin_processor);
    }
    if (context.world_rank() != 0) return;
    const auto tokens = static_cast<double>(o.rows * o.tokens * o.ranks);
    figure = {{"tokens_per_s", tokens / median(wall)},       {"step_s", median(wall)},
              {"forward_s", median(forward)},                {"processor_s_per_rank", median(processor)},
              {"gflop_per_s_per_rank", 1e-9 * flops * tokens / o.ranks / median(processor)}};
  });
  figure["peak_rss_mb_all_ranks"] = peak_rss_mb();
  return figure;
}

Json generation(const Options& o) {
  (void)at::get_num_threads();
  at::internal::lazy_init_num_threads();
  at::set_num_threads(o.threads);
  auto model = load(o, o.dtype);
  const std::vector<std::vector<std::int64_t>> prompt(1, std::vector<std::int64_t>(16, 7));
  std::vector<double> wall, processor;
  for (int run = 0; run < 4; ++run) {
    std::vector<double> at;
    GenerateOptions options{.max_new_tokens = o.fresh, .eos_token_ids = std::vector<std::int64_t>{}};
    options.on_token = [&](std::int64_t, std::int64_t) {
      at.push_back(now_s());
      return true;
    };
    const auto begin = processor_s(), begin_wall = now_s();
    (void)generate(model, prompt, options);
    if (run == 0) continue;
    wall.push_back((at.back() - begin_wall) / static_cast<double>(at.size()));  // with the prompt
    processor.push_back((processor_s() - begin) / static_cast<double>(o.fresh));
  }
  return {{"tokens_per_s", 1 / median(wall)}, {"ms_per_token", 1e3 * median(wall)}, {"processor_ms_per_token", 1e3 * median(processor)}, {"threads", o.threads}};
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto o = parse(argc, argv);
    Json all{{"dtype", name(o.dtype)}, {"ranks", o.ranks}, {"rows", o.rows}, {"tokens", o.tokens}};
    for (const auto& what : o.what) {
      all[what] = what == "generate" ? generation(o) : train(o, what == "lora");
      std::cout << what << " " << all[what].dump() << std::endl;
    }
    if (!o.json.empty()) std::ofstream{o.json} << all.dump(2) << "\n";
  } catch (const std::exception& error) {
    std::cerr << "llama_bench: " << error.what() << "\n";
    return 1;
  }
}

// Fine-tunes a Llama, whole or by LoRA, sharded over ranks by a DeepSpeed JSON: Ray's Llama-2 template with its flags.
//
//   make llama       fetches SmolLM2-135M and a public-domain text, trains adapters on two ranks, shows a completion before and after
//   llama_finetune --model-path DIR --train_path train.jsonl --test_path test.jsonl --ds-config examples/configs/zero_3.json --lora
//
// Prints progress, the evaluation's perplexity, where the run's files are, and with --prompt what the model makes of it.
#include <troupe/generate.hpp>
#include <troupe/fine_tune_pairs.hpp>
#include <troupe/llama_finetune.hpp>
#include <troupe/lora.hpp>
#include <troupe/options.hpp>
#include <troupe/tokenizer.hpp>
#include <troupe/troupe.hpp>

#include <cstdio>
#include <ctime>
#include <filesystem>
#include <string>

namespace {

namespace fs = std::filesystem;
using troupe::LlamaForCausalLM;

struct Afterwards {
  std::string prompt;      ///< continued by the model as it was and as it is
  std::int64_t max_new_tokens = 60;
  std::string export_dir;  ///< the best model as a Hugging Face directory, adapters merged
};

LlamaForCausalLM base_model(const std::string& directory, const troupe::Tokenizer& tokenizer) {
  const auto rows = troupe::LlamaConfig::from_file(fs::path{directory} / "config.json").vocab_size;
  const auto tokens = static_cast<std::int64_t>(tokenizer.vocab_size());
  return LlamaForCausalLM::from_pretrained(directory, {.vocab_size = tokens > rows ? tokens : 0});
}

void complete(const char* title, LlamaForCausalLM& model, const troupe::Tokenizer& tokenizer, const Afterwards& after) {
  model->eval();
  const auto made = troupe::generate(model, {tokenizer.encode(after.prompt)}, {.max_new_tokens = after.max_new_tokens, .repetition_penalty = 1.2});
  std::printf("\n%s\n  %s%s\n", title, after.prompt.c_str(), tokenizer.decode(made.tokens[0]).c_str());
}

/// Shows and exports what the best checkpoint holds.
void use(const fs::path& checkpoint, const troupe::LlamaFinetuneOptions& options, const Afterwards& after) {
  const auto tokenizer = troupe::load_tokenizer(checkpoint);
  auto model = base_model(options.model_path, *tokenizer);
  if (!after.prompt.empty()) complete("Before:", model, *tokenizer, after);
  if (options.lora) {
    troupe::load_adapter(*model, checkpoint, /*trainable=*/false);
    troupe::merge_and_unload(*model);
  } else {
    model = LlamaForCausalLM::from_pretrained(checkpoint);
  }
  if (!after.prompt.empty()) complete("After:", model, *tokenizer, after);
  if (after.export_dir.empty()) return;
  model->save_pretrained(after.export_dir);
  tokenizer->save(after.export_dir);
  std::printf("\nModel            %s\n", after.export_dir.c_str());
}

void print_training(const troupe::Result& result) {
  double tokens_per_s = 0, mfu = 0;
  int steps = 0;
  for (const auto& report : result.history) {
    const auto rate = report.metrics.number("tokens_per_s");
    if (!rate || report.rank != 0) continue;
    if (steps++ == 0) {
      std::printf("First step       %.2f s after the start\n", report.time_s);
      continue;  // it also warms up
    }
    tokens_per_s += *rate;
    mfu += report.metrics.number("mfu").value_or(0);
  }
  if (steps > 1) std::printf("Speed            %.0f tokens/s, %.0f %% of the devices' peak\n", tokens_per_s / (steps - 1), 100 * mfu / (steps - 1));
}

std::string new_name() {
  char text[64];
  const auto now = std::time(nullptr);
  std::tm local{};
  (void)std::strftime(text, sizeof text, "llama_finetune-%Y%m%d-%H%M%S", localtime_r(&now, &local));
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, {{"finetune_llama", troupe::finetune_llama}}};

  troupe::LlamaFinetuneOptions finetune;
  Afterwards after;
  troupe::TrainerOptions options;
  options.scaling.num_workers = 4;
  options.run.name = new_name();
  options.run.checkpoint.checkpoint_score_attribute = "perplexity";
  options.run.checkpoint.checkpoint_score_order = "min";
  options.run.checkpoint.num_to_keep = 1;
  CLI::App app{"Fine-tunes a Llama over rank actors, whole or by LoRA.", "llama_finetune"};
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  troupe::add_options(app, finetune);
  troupe::add_template_options(app, options);
  app.add_option("--prompt", after.prompt, "show how the model goes on from it, before and after");
  app.add_option("--max_new_tokens", after.max_new_tokens, "of --prompt")->capture_default_str()->check(CLI::Range(1, 100'000));
  app.add_option("--export", after.export_dir, "write the best model here, adapters merged");
  if (const auto code = troupe::parse_options(app, argc, argv)) return *code;

  try {
    troupe::TorchTrainer trainer{session, "finetune_llama", to_config(finetune), options};
    const auto result = trainer.fit();
    troupe::print_summary(result);
    print_training(result);
    if (result.ok() && result.best_checkpoint) use(result.best_checkpoint->checkpoint.path(), finetune, after);
    return result.exit_code();
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "llama_finetune: %s\n", failure.what());
    return 2;
  }
}

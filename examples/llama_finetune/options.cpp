#include <troupe/errors.hpp>
#include <troupe/fine_tune_pairs.hpp>
#include <troupe/llama_finetune.hpp>

#include <CLI/CLI.hpp>

namespace troupe {

namespace {

/// Calls `visit(name, field)` for every field: one list for both directions.
template <class Options, class Visit>
void each_field(Options& o, const Visit& visit) {
  visit("model_path", o.model_path);
  visit("train_path", o.train_path);
  visit("test_path", o.test_path);
  visit("test_rows", o.test_rows);
  visit("dataset_config", o.dataset_config);
  visit("ctx_len", o.ctx_len);
  visit("packing", o.packing);
  visit("mask_prompt", o.mask_prompt);
  visit("group_by_length", o.group_by_length);
  visit("batch_size_per_device", o.batch_size_per_device);
  visit("eval_batch_size_per_device", o.eval_batch_size_per_device);
  visit("num_epochs", o.num_epochs);
  visit("max_steps", o.max_steps);
  visit("grad_accum", o.grad_accum);
  visit("lr", o.lr);
  visit("num_warmup_steps", o.num_warmup_steps);
  visit("weight_decay", o.weight_decay);
  visit("mx", o.mx);
  visit("ds_config", o.ds_config);
  visit("param_dtype", o.param_dtype);
  visit("lora", o.lora);
  visit("lora_config", o.lora_config);
  visit("no_grad_ckpt", o.no_grad_ckpt);
  visit("stop_perplexity", o.stop_perplexity);
  visit("eval_first", o.eval_first);
  visit("checkpoint_every", o.checkpoint_every);
  visit("as_test", o.as_test);
  visit("peak_tflops", o.peak_tflops);
  visit("seed", o.seed);
}

void add_data_options(CLI::App& app, LlamaFinetuneOptions& o) {
  app.add_option("--train_path", o.train_path, "training data: .jsonl (question and answer; input; prompt and completion; messages; text), else plain text")->required();
  app.add_option("--test_path", o.test_path, "evaluation data (default: the last --test_rows rows of the training data)");
  app.add_option("--test_rows", o.test_rows, "rows kept from training for evaluation, without --test_path")->capture_default_str()->check(CLI::Range(1, 1'000'000));
  app.add_option("--dataset_config,--special_token_path", o.dataset_config, "JSON with the four tags round questions and answers");
  app.add_option("--ctx-len,--block_size", o.ctx_len, "tokens of a row")->capture_default_str()->check(CLI::Range(2, 1 << 24));
  app.add_option("--packing", o.packing, "how examples become rows: none, split or whole; auto: split for text, else none")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "none", "split", "whole"}));
  app.add_flag("--mask_prompt", o.mask_prompt, "train on answers only");
  app.add_flag("--group_by_length", o.group_by_length, "batches of rows of like length");
}

void add_model_options(CLI::App& app, LlamaFinetuneOptions& o) {
  app.add_option("--model-path,--model-name,--model_name,--model", o.model_path, "Hugging Face directory of a Llama: config.json, safetensors, tokenizer")->required();
  app.add_option("--mx", o.mx, "mixed precision: no, bf16 or fp16")->capture_default_str()->check(CLI::IsMember({"no", "bf16", "fp16"}));
  app.add_option("--param-dtype", o.param_dtype, "of the weights that ranks keep: f32, or auto: as published (with --lora)")->capture_default_str()->check(CLI::IsMember({"f32", "auto"}));
  app.add_option("--ds-config", o.ds_config, "DeepSpeed JSON: sharded by its ZeRO stage, with its offload");
  app.add_flag("--lora", o.lora, "train low-rank adapters only");
  app.add_option("--lora-config", o.lora_config, "JSON with r, lora_alpha, lora_dropout, target_modules (default: 8, 16, 0.05, MLP projections)");
  app.add_flag("--no-grad-ckpt", o.no_grad_ckpt, "keep activations instead of computing them again in backward");
}

void add_run_options(CLI::App& app, LlamaFinetuneOptions& o) {
  app.add_option("--batch-size-per-device", o.batch_size_per_device, "rows a rank and step")->capture_default_str()->check(CLI::Range(1, 65536));
  app.add_option("--eval-batch-size-per-device", o.eval_batch_size_per_device, "rows a rank and evaluation step")->capture_default_str()->check(CLI::Range(1, 65536));
  app.add_option("--num-epochs", o.num_epochs, "epochs")->capture_default_str()->check(CLI::Range(1, 100'000));
  app.add_option("--max_steps", o.max_steps, "updates, then evaluate and end (0: whole epochs)")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_option("--grad_accum", o.grad_accum, "batches an update")->capture_default_str()->check(CLI::Range(1, 65536));
  app.add_option("--lr", o.lr, "peak learning rate of AdamW (0: 5e-6, with --lora 1e-4)")->capture_default_str()->check(CLI::Range(0.0, 1.0));
  app.add_option("--num_warmup_steps", o.num_warmup_steps, "updates of warm-up, then down a line to 0")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_option("--weight_decay", o.weight_decay, "of AdamW")->capture_default_str()->check(CLI::Range(0.0, 1.0));
  app.add_option("--stop_perplexity,--stop-perplexity", o.stop_perplexity, "stop after an epoch with less (0: never)")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_flag("--eval_first", o.eval_first, "evaluate before training too");
  app.add_option("--checkpoint_every", o.checkpoint_every, "updates between checkpoints inside an epoch (0: none)")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_flag("--as-test", o.as_test, "one update and one batch of evaluation");
  app.add_option("--peak_tflops", o.peak_tflops, "of a rank's device, for MFU (0: measured)")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_option("--seed", o.seed, "of initialisation, dropout and shuffling")->capture_default_str();
}

}  // namespace

Config to_config(const LlamaFinetuneOptions& options) {
  Config config;
  each_field(options, [&](const char* name, const auto& field) { config.set(name, field); });
  return config;
}

LlamaFinetuneOptions llama_finetune_options(const Config& config) {
  LlamaFinetuneOptions options;
  each_field(options, [&]<class T>(const char* name, T& field) { field = config.get_or(name, field); });
  return options;
}

void add_options(CLI::App& app, LlamaFinetuneOptions& options) {
  add_model_options(app, options);
  add_data_options(app, options);
  add_run_options(app, options);
}

void add_template_options(CLI::App& app, TrainerOptions& options) {
  add_options(app, options);
  app.remove_option(app.get_option("--num_workers"));
  app.remove_option(app.get_option("--storage_path"));
  app.add_option("--num-devices,--num_workers", options.scaling.num_workers, "ranks")->capture_default_str();
  app.add_option("--output_dir,--storage_path", options.run.storage_path, "runs are kept here")->capture_default_str();
  app.add_option("--num-checkpoints-to-keep", options.run.checkpoint.num_to_keep, "those of lowest perplexity (default 1)");
}

}  // namespace troupe

#pragma once

#include <troupe/config.hpp>
#include <troupe/torch_trainer.hpp>

#include <cstdint>
#include <string>

namespace CLI {
class App;
}

namespace troupe {

/// What `finetune_llama` reads from its train_loop_config; fields are command-line options, by the Ray template's names.
struct LlamaFinetuneOptions {
  std::string model_path;            ///< Hugging Face directory of a Llama
  std::string train_path;            ///< .jsonl or text (`read_text_examples`)
  std::string test_path;             ///< empty: the last `test_rows` rows of the training data
  std::int64_t test_rows = 64;
  std::string dataset_config;        ///< JSON with the tags, which become tokens; empty: the usual ones, if the data has questions
  std::int64_t ctx_len = 512;        ///< tokens of a row
  std::string packing = "auto";      ///< "none", "split", "whole"; auto: split for text, none for JSON Lines
  bool mask_prompt = false;
  bool group_by_length = false;
  std::int64_t batch_size_per_device = 16;
  std::int64_t eval_batch_size_per_device = 64;
  int num_epochs = 1;
  std::int64_t max_steps = 0;        ///< updates; 0: all epochs whole
  int grad_accum = 1;
  double lr = 0;                     ///< 0: 5e-6, with LoRA 1e-4
  std::int64_t num_warmup_steps = 10;
  double weight_decay = 0;
  std::string mx = "bf16";           ///< "no", "bf16", "fp16"
  std::string ds_config;             ///< DeepSpeed JSON
  std::string param_dtype = "f32";   ///< of the masters; "auto": as published, for a frozen base
  bool lora = false;
  std::string lora_config;           ///< LoRA JSON; empty: r 8, alpha 16, dropout 0.05 on gate, up and down projections
  bool no_grad_ckpt = false;
  double stop_perplexity = 0;        ///< stop after an epoch that is below; 0: never
  bool eval_first = false;           ///< report the evaluation before training too
  std::int64_t checkpoint_every = 0; ///< updates between checkpoints inside an epoch; 0: none
  bool as_test = false;              ///< one update, one batch of evaluation
  double peak_tflops = 0;            ///< of a rank's device, for MFU; 0: measured
  std::uint64_t seed = 42;
};

[[nodiscard]] Config to_config(const LlamaFinetuneOptions& options);
[[nodiscard]] LlamaFinetuneOptions llama_finetune_options(const Config& config);

/// Train function. Every update is reported, with the same numbers by all ranks: epoch, iteration, train_loss (mean over ranks and window),
/// learning_rate, fwd_time, bwd_time, optim_time, step_time (seconds), tokens_per_s (all ranks), tflops (a rank), mfu. After each epoch
/// they report eval_loss, perplexity and a checkpoint: the model with its configuration and tokenizer, or of LoRA the adapter
/// as PEFT writes it; and what it takes to go on.
void finetune_llama(TrainContext& context, const Config& config);

void add_options(CLI::App& app, LlamaFinetuneOptions& options);
/// The trainer's options by the template's names too: --num-devices, --output_dir.
void add_template_options(CLI::App& app, TrainerOptions& options);

}  // namespace troupe

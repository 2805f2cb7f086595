#pragma once

#include <troupe/data/tensor_dict.hpp>
#include <troupe/torch_trainer.hpp>
#include <troupe/wordpiece.hpp>

#include <string>
#include <utility>
#include <vector>

namespace CLI {
class App;
}

namespace troupe {

/// What `fine_tune_pairs` reads from its train_loop_config; each field is also a command-line option of that name.
struct FineTuneOptions {
  std::string model;                         ///< Hugging Face directory of a BERT
  std::string data;                          ///< directory with the pairs
  std::string train_file;                    ///< empty: the usual names in `data`
  std::string eval_file;                     ///< empty: the usual names in `data`
  int num_train_epochs = 1;
  std::int64_t per_device_train_batch_size = 16;
  std::int64_t per_device_eval_batch_size = 32;
  double learning_rate = 5e-5;
  double weight_decay = 0.01;                ///< none on biases and LayerNorm weights
  double warmup_ratio = 0.1;                 ///< of all updates
  std::int64_t num_warmup_steps = -1;        ///< negative: from warmup_ratio
  int gradient_accumulation_steps = 1;
  double max_grad_norm = 1.0;                ///< 0: no clipping
  std::int64_t max_length = 64;              ///< tokens of a pair
  std::uint64_t seed = 42;
  std::string mixed_precision = "no";        ///< "no" or "bf16"
  std::string deepspeed;                     ///< DeepSpeed JSON; its accumulation, precision and clipping count then
};

[[nodiscard]] Config to_config(const FineTuneOptions& options);

/// Train function: fine-tunes a BERT on sentence pairs with AdamW and a linear schedule; after every epoch reports
/// accuracy and F1 on the dev split with a checkpoint that holds the model, its configuration and vocabulary, and the
/// training state to resume from.
void fine_tune_pairs(TrainContext& context, const Config& config);

/// Options named as the fields, with defaults and help.
void add_options(CLI::App& app, FineTuneOptions& options);
void add_options(CLI::App& app, TrainerOptions& options);

/// Where everything is and how it went, on stdout.
void print_summary(const Result& result);

}  // namespace troupe

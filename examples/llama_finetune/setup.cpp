#include "setup.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace troupe::detail {

namespace {

bool is_json(const std::string& path) { return path.ends_with(".jsonl") || path.ends_with(".json"); }

Packing packing_of(const LlamaFinetuneOptions& o, const std::string& path) {
  if (o.packing == "auto") return is_json(path) ? Packing::None : Packing::Split;
  return o.packing == "none" ? Packing::None : o.packing == "split" ? Packing::Split : Packing::Whole;
}

bool has_prompts(const std::vector<TextExample>& examples) {
  return std::ranges::any_of(examples, [](const TextExample& example) { return !example.prompt.empty(); });
}

LoraConfig lora_of(const LlamaFinetuneOptions& o) {
  if (!o.lora_config.empty()) return LoraConfig::from_file(o.lora_config);
  LoraConfig lora;
  lora.r = 8;
  lora.lora_alpha = 16;
  lora.lora_dropout = 0.05;
  lora.target_modules = {"gate_proj", "up_proj", "down_proj"};
  return lora;
}

}  // namespace

FinetuneData read_finetune_data(const LlamaFinetuneOptions& o, const LlamaConfig& model) {
  FinetuneData data;
  data.tokenizer = load_tokenizer(o.model_path);
  if (std::cmp_greater(data.tokenizer->vocab_size(), model.vocab_size)) {
    throw Failure{Errc::InvalidConfig, o.model_path + ": the tokenizer has " + std::to_string(data.tokenizer->vocab_size()) +
                                           " tokens, but the model's vocab_size is " + std::to_string(model.vocab_size)};
  }
  if (o.ctx_len > model.max_position_embeddings && model.rope_scaling.rope_type != "dynamic") {
    throw Failure{Errc::InvalidConfig, "--ctx-len " + std::to_string(o.ctx_len) + " is longer than this model's context of " +
                                           std::to_string(model.max_position_embeddings) + " tokens (max_position_embeddings)"};
  }
  const auto tags = o.dataset_config.empty() ? CompletionTags{} : read_completion_tags(o.dataset_config);
  const auto examples = read_text_examples(o.train_path, tags);
  const auto test_examples = o.test_path.empty() ? std::vector<TextExample>{} : read_text_examples(o.test_path, tags);
  if (!o.dataset_config.empty() || (is_json(o.train_path) && has_prompts(examples))) {
    SpecialTokens added;
    added.additional = tags.all();
    data.tokenizer->add_special_tokens(added);
  }
  data.pad_id = pad_id_of(*data.tokenizer);

  const auto rows_of = [&](const std::vector<TextExample>& from, const std::string& path) {
    return make_rows(*data.tokenizer, from, {static_cast<std::size_t>(o.ctx_len), packing_of(o, path), o.mask_prompt});
  };
  auto train = rows_of(examples, o.train_path);
  Rows test;
  if (!o.test_path.empty()) {
    test = rows_of(test_examples, o.test_path);
  } else {
    if (std::cmp_less_equal(train.size(), o.test_rows)) {
      throw Failure{Errc::InvalidConfig, o.train_path + " gives " + std::to_string(train.size()) + " rows of " + std::to_string(o.ctx_len) +
                                             " tokens, of which --test_rows " + std::to_string(o.test_rows) + " leaves none to train on"};
    }
    const auto first = train.end() - o.test_rows;
    test.assign(std::make_move_iterator(first), std::make_move_iterator(train.end()));
    train.erase(first, train.end());
  }
  data.train = std::make_shared<const Rows>(std::move(train));
  data.test = std::make_shared<const Rows>(std::move(test));
  return data;
}

LlamaForCausalLM make_model(const LlamaFinetuneOptions& o, const Tokenizer& tokenizer, const LlamaConfig& config) {
  PretrainedOptions pretrained{.dtype = DType::F32, .deferred = true};
  if (o.param_dtype == "auto") {
    if (!o.lora) throw Failure{Errc::InvalidConfig, "--param-dtype auto is for --lora: weights that are trained are kept in f32"};
    pretrained.dtype = std::nullopt;
  }
  const auto tokens = static_cast<std::int64_t>(tokenizer.vocab_size());
  if (tokens > config.vocab_size) pretrained.vocab_size = tokens;
  auto model = LlamaForCausalLM::from_pretrained(o.model_path, pretrained);
  if (!o.lora) return model;
  auto lora = lora_of(o);
  lora.base_model_name_or_path = o.model_path;
  const auto expected = lora_parameter_count(*model, lora);
  apply_lora(*model, lora);
  if (const auto count = count_parameters(*model); count.trained != expected) {
    throw Failure{Errc::Internal, "LoRA trains " + std::to_string(count.trained) + " parameters, the formula says " + std::to_string(expected)};
  }
  return model;
}

AcceleratorOptions accelerator_options(const LlamaFinetuneOptions& o, const LlamaConfig& config) {
  AcceleratorOptions options{.mixed_precision = precision_from(o.mx), .gradient_accumulation_steps = o.grad_accum};
  if (!o.ds_config.empty()) {
    options.deepspeed_plugin = DeepSpeedPlugin::from_json(o.ds_config);
    options.hidden_sizes = {config.hidden_size};
  }
  return options;
}

double measured_flops(Precision precision) {
  constexpr std::int64_t n = 512;
  const at::NoGradGuard no_grad;
  const auto type = precision == Precision::BF16 ? at::kBFloat16 : precision == Precision::FP16 ? at::kHalf : at::kFloat;
  const auto a = at::ones({n, n}, at::TensorOptions().dtype(type));
  double best = 1e9;
  for (int i = 0; i < 6; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    (void)at::matmul(a, a);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return 2.0 * n * n * n / best;
}

}  // namespace troupe::detail

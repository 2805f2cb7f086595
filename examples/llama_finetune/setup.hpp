#pragma once

#include <troupe/accelerator.hpp>
#include <troupe/instruct_data.hpp>
#include <troupe/llama.hpp>
#include <troupe/llama_finetune.hpp>
#include <troupe/lora.hpp>
#include <troupe/tokenizer.hpp>

#include <memory>
#include <vector>

namespace troupe::detail {

using Rows = std::vector<TokenRow>;

/// What the run reads: the tokenizer, with tags added, and rows of tokens.
struct FinetuneData {
  std::shared_ptr<Tokenizer> tokenizer;
  std::shared_ptr<const Rows> train, test;
  std::int64_t pad_id = 0;
};

/// Throws Failure{InvalidConfig} for a tokenizer with more tokens than the model, or a context longer than the model's.
[[nodiscard]] FinetuneData read_finetune_data(const LlamaFinetuneOptions& options, const LlamaConfig& model);

/// The model without values yet, its embedding as large as the tokenizer, with adapters if asked for. Throws as from_pretrained, apply_lora.
[[nodiscard]] LlamaForCausalLM make_model(const LlamaFinetuneOptions& options, const Tokenizer& tokenizer, const LlamaConfig& config);

[[nodiscard]] AcceleratorOptions accelerator_options(const LlamaFinetuneOptions& options, const LlamaConfig& config);

/// Multiplications and additions a second of one thread's matrix products in `precision`, measured in some hundredths of a second.
[[nodiscard]] double measured_flops(Precision precision);

}  // namespace troupe::detail

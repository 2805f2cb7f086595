#pragma once

#include <troupe/gguf.hpp>

namespace troupe::detail {

/// A Llama model's numbers, read from a GGUF file's metadata.
struct LlamaFacts {
  std::int64_t layers = 0, hidden = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, context = 0, vocab = 0;
  std::string rms_norm_eps;  ///< as the float32 is written shortest
  double rope_theta = 10000;
  double rope_factor = 1;  ///< of linear scaling; 1: none
  bool tied = false, attention_bias = false;
};

/// A tensor of the file and its place in the Hugging Face model.
struct LlamaTensor {
  std::string name;
  const GgufTensor* source = nullptr;
  std::int64_t interleaved_heads = 0;  ///< of q and k; else 0
};

/// Throws Failure{Unsupported} for another architecture and for what Hugging Face's Llama cannot say.
[[nodiscard]] LlamaFacts read_llama_facts(const GgufFile& file);
/// Every tensor of the model, its shape checked; a missing one is FileCorrupt, one too many Unsupported.
[[nodiscard]] std::vector<LlamaTensor> match_llama_tensors(const GgufFile& file, const LlamaFacts& facts);
/// Text of config.json. `dtype`: "bfloat16", "float16" or "float32".
[[nodiscard]] std::string llama_config_json(const GgufFile& file, const LlamaFacts& facts, const std::string& dtype);
[[nodiscard]] std::string llama_generation_json(const GgufFile& file);

/// llama.cpp stores the rotary halves of each head of q and k interleaved: the row of the file's row `row`.
[[nodiscard]] constexpr std::uint64_t row_without_interleaving(std::uint64_t row, std::uint64_t head_dim) noexcept {
  const auto in_head = row % head_dim;
  return row - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

/// Name → text of the tokenizer's files. Throws Failure{Unsupported} naming a kind of tokenizer that is not known.
[[nodiscard]] std::map<std::string, std::string> tokenizer_files(const GgufFile& file, const LlamaFacts& facts);

}  // namespace troupe::detail

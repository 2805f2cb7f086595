#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <troupe/llama.hpp>
#include <vector>

// B: rows, T: tokens, H: heads of keys and values, K: size of a head

namespace troupe {

/// Keys and values of the tokens seen so far, for all layers, allocated once.
///
/// Threads: one at a time.
class KvCache {
 public:
  /// Room for `capacity` tokens of each of `batch` rows; grows when they are more. @param dtype of the model's computing.
  KvCache(const LlamaConfig& config, std::int64_t batch, std::int64_t capacity, DType dtype);
  [[nodiscard]] std::int64_t length() const noexcept { return length_; }
  [[nodiscard]] std::int64_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::int64_t batch() const noexcept { return batch_; }

  /// Puts `k` and `v` [B,H,t,K] behind the tokens there and returns all of the layer's, as views.
  std::pair<at::Tensor, at::Tensor> append(std::int64_t layer, const at::Tensor& k_BHtK, const at::Tensor& v_BHtK);
  /// Once all layers have appended `tokens`. @param real_Bt which of them are no padding; undefined: all.
  void advance(std::int64_t tokens, const at::Tensor& real_Bt = {});
  /// Which tokens are no padding [B, length]; undefined: all are.
  [[nodiscard]] const at::Tensor& real() const noexcept { return real_; }
  void reserve(std::int64_t capacity);

 private:
  friend class Decoder;
  std::int64_t batch_, capacity_, length_ = 0;
  std::vector<at::Tensor> keys_, values_;  // a layer each: [B,H,capacity,K]
  at::Tensor real_;
};

/// How tokens are chosen and when to stop, by the names of transformers' GenerationConfig.
struct GenerateOptions {
  std::int64_t max_new_tokens = 64;
  bool do_sample = false;  ///< false: the likeliest token, always
  double temperature = 1;
  std::int64_t top_k = 50;  ///< sample among the likeliest so many; 0: all
  double top_p = 1;         ///< sample among the likeliest whose probabilities add up to this
  double repetition_penalty = 1;
  std::optional<std::uint64_t> seed{};  ///< nothing: the draws come from `rank_generator()`
  /// A row ends with one of them, which is part of its result. Nothing: config.json's eos tokens.
  std::optional<std::vector<std::int64_t>> eos_token_ids{};
  /// A row ends once its new text holds one of these; needs `decode`.
  std::vector<std::string> stop_strings{};
  /// Text of tokens: a tokenizer's.
  std::function<std::string(std::span<const std::int64_t>)> decode{};
  /// Called with each new token of each row as it is chosen; false ends that row.
  std::function<bool(std::int64_t row, std::int64_t token)> on_token{};

  /// What generation_config.json says, if it is there, over these defaults. Throws Failure{FileCorrupt, InvalidConfig}.
  [[nodiscard]] static GenerateOptions from_pretrained(const std::filesystem::path& directory);
  /// Throws Failure{InvalidConfig}.
  void check() const;
};

struct Generated {
  enum class Reason : std::uint8_t { MaxNewTokens, EosToken, StopString, Callback };
  std::vector<std::vector<std::int64_t>> tokens;  ///< new ones, by row
  std::vector<Reason> reasons;                    ///< why each row ended
};

/// Continues each prompt. Prompts of different lengths go as one batch, padded on the left; each row gets what it would get alone
/// (to rounding). No graph is recorded; the model's mode (train or eval) is left alone, dropout is off.
///
/// Under ShardParameters it gathers layer after layer for every token, and all ranks must call it with equally many prompts'
/// worth of steps: a sharded model runs `max_new_tokens` steps whatever the rows do.
///
/// Throws Failure{InvalidArgument} for an empty prompt, a token outside the vocabulary, or when prompt and new tokens are more than
/// max_position_embeddings (unless rope scaling is "dynamic").
[[nodiscard]] Generated generate(LlamaForCausalLM& model, const std::vector<std::vector<std::int64_t>>& prompts, const GenerateOptions& options = {});

}  // namespace troupe

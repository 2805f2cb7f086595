#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <troupe/buffer.hpp>
#include <troupe/data/tensor_dict.hpp>
#include <troupe/unit.hpp>
#include <tuple>
#include <vector>

// B: batch, T: tokens, D: hidden size, V: vocabulary

namespace troupe {

class KvCache;

/// How rotary position embeddings reach beyond the length they were trained for; Hugging Face's
/// `rope_parameters` (5.x) or `rope_scaling` (4.x). What a type does not use is left alone.
struct RopeScaling {
  std::string rope_type = "default";  ///< or "linear", "dynamic", "yarn", "llama3"
  double factor = 1;
  double low_freq_factor = 1;   ///< llama3
  double high_freq_factor = 4;  ///< llama3
  std::int64_t original_max_position_embeddings = 0;  ///< llama3, yarn, dynamic; 0: as the model's
  std::optional<double> attention_factor{};           ///< yarn; nothing: 0.1 ln(factor) + 1
  double beta_fast = 32;                              ///< yarn
  double beta_slow = 1;                               ///< yarn
};

/// Hugging Face's config.json of a Llama. Read in the layouts of transformers 4.x and 5.x.
struct LlamaConfig {
  std::int64_t vocab_size = 32000;
  std::int64_t hidden_size = 4096;
  std::int64_t intermediate_size = 11008;
  std::int64_t num_hidden_layers = 32;
  std::int64_t num_attention_heads = 32;
  std::int64_t num_key_value_heads = 0;  ///< 0: as num_attention_heads
  std::int64_t head_dim = 0;             ///< 0: hidden_size / num_attention_heads
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double initializer_range = 0.02;
  double rope_theta = 10000;
  RopeScaling rope_scaling{};
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  double attention_dropout = 0;
  std::optional<std::int64_t> bos_token_id = 1;
  std::vector<std::int64_t> eos_token_ids{2};
  std::optional<std::int64_t> pad_token_id{};
  DType dtype = DType::F32;  ///< of the published weights

  [[nodiscard]] std::int64_t kv_heads() const { return num_key_value_heads ? num_key_value_heads : num_attention_heads; }
  [[nodiscard]] std::int64_t head_size() const { return head_dim ? head_dim : hidden_size / num_attention_heads; }
  /// Of all tensors, tied ones once.
  [[nodiscard]] std::int64_t num_parameters() const;
  /// Multiplications and additions of a forward and backward of one token in a sequence of `tokens` (PaLM, arXiv 2204.02311,
  /// appendix B): 6 a parameter of a matrix, and attention's 12 · layers · heads · head size · tokens.
  /// @param frozen_base only adapters are trained: no gradients of the base's matrices, so 4 a parameter.
  [[nodiscard]] double flops_per_token(std::int64_t tokens, bool frozen_base = false) const;
  /// Throws Failure{FileNotFound, FileCorrupt, InvalidConfig, Unsupported} naming the file and the key.
  [[nodiscard]] static LlamaConfig from_file(const std::filesystem::path& config_json);
  /// Writes it as transformers 5 does (4.x reads it too). Throws Failure{StorageUnavailable}.
  void save(const std::filesystem::path& config_json) const;
  /// Throws Failure{InvalidConfig, Unsupported} for what makes no model.
  void check(const std::string& where = "LlamaConfig") const;
};

struct CausalLMOutput {
  at::Tensor loss;        ///< [] mean cross-entropy of the labelled tokens, in fp32; undefined without labels
  at::Tensor logits_BTV;  ///< undefined with labels, unless asked for
  at::Tensor last_hidden_state_BTD;
  std::int64_t num_targets = 0;  ///< tokens that the loss is a mean over: the weight for `Accelerator::backward`

  auto tensors() { return std::tie(loss, logits_BTV, last_hidden_state_BTD); }
};

struct LlamaForwardOptions {
  /// Keys and values of earlier tokens, to which this call adds its own; no gradient then.
  KvCache* cache = nullptr;
  /// Which logits: nothing: all without labels, none with.
  enum class Logits : std::uint8_t { Auto, All, Last, None } logits = Logits::Auto;
};

namespace detail {
struct LlamaParts;
struct LlamaPass;
}

/// Llama as a causal language model (Touvron et al., arXiv 2302.13971, 2307.09288): RMSNorm, rotary positions, grouped-query
/// attention, SwiGLU. Parameter names are Hugging Face's ("model.layers.0.self_attn.q_proj.weight"). Initial values and
/// dropout come from `rank_generator()`. The model is a unit, and so are "LlamaDecoderLayer" (each block), the embedding and
/// the head: call it as `model(batch)`. The projections of a block are `troupe::Linear`s, which LoRA can adapt.
///
/// Threads: one caller. Errors: Failure{InvalidArgument} for a batch that does not fit, its tensor named.
class LlamaForCausalLMImpl : public Unit {
 public:
  /// Weights drawn from normal(0, initializer_range), biases 0, norms 1.
  explicit LlamaForCausalLMImpl(LlamaConfig config, DType dtype = DType::F32);
  ~LlamaForCausalLMImpl() override;
  /// Reads "input_ids" [B,T]; optional "attention_mask" [B,T] (1: a real token; padding on either side); optional
  /// "document_ids" [B,T] for packed rows (a token sees those before it of the same document; 0: padding); optional
  /// "position_ids" [B,T] (otherwise counted from the first real token, in packed rows of each document); optional "labels"
  /// [B,T] as transformers takes them: not shifted, -100 for tokens that are not predicted. Of packed rows the first token of
  /// a document is not predicted from the one before it.
  ///
  /// The loss projects only hidden states of labelled tokens onto the vocabulary, some at a time: [B*T, V] never exists.
  [[nodiscard]] CausalLMOutput forward(const Batch& batch, const LlamaForwardOptions& options = {});
  [[nodiscard]] const LlamaConfig& config() const noexcept { return config_; }
  /// Writes config.json and model.safetensors (or shards and an index), which transformers loads. LoRA must be merged or absent.
  /// Not for a model that an Accelerator shards: that is `accelerator.save_model` and `config().save`.
  void save_pretrained(const std::filesystem::path& directory, std::uint64_t max_shard_bytes = 10'000'000'000) const;

  /// For `generate`.
  [[nodiscard]] detail::LlamaParts& parts() noexcept { return *parts_; }

 private:
  friend class LlamaForCausalLM;
  struct Empty {};
  LlamaForCausalLMImpl(LlamaConfig config, DType dtype, bool deferred, Empty);
  [[nodiscard]] std::shared_ptr<const detail::LlamaPass> plan(const Batch& batch, const at::Tensor& ids_BT, KvCache* cache);
  void finish(const Batch& batch, const at::Tensor& labels_BT, const LlamaForwardOptions& options, CausalLMOutput& out);

  LlamaConfig config_;
  std::unique_ptr<detail::LlamaParts> parts_;
};

struct PretrainedOptions {
  std::optional<DType> dtype = DType::F32;  ///< of parameters; nothing: as config.json says
  /// Parameters get no memory: `Accelerator::prepare` reads this rank's part of each from the files. For models that no rank
  /// can hold whole.
  bool deferred = false;
  /// 0: config.json's. More rows of embedding and head than the files have are the mean of those there (as transformers fills
  /// them, but for its noise of 1e-9). Fewer are refused.
  std::int64_t vocab_size = 0;
};

class LlamaForCausalLM : public UnitHolder<LlamaForCausalLMImpl> {
 public:
  using Holder = UnitHolder<LlamaForCausalLMImpl>;
  using Holder::Holder;
  using Impl [[maybe_unused]] = LlamaForCausalLMImpl;
  CausalLMOutput operator()(const Batch& batch, const LlamaForwardOptions& options = {}) { return Holder::operator()(batch, options); }
  /// Loads a Hugging Face directory: config.json, and model.safetensors or the shards of its index. Every tensor is looked for
  /// and its shape compared before anything is read. Throws Failure{FileNotFound, FileCorrupt, InvalidConfig} naming file,
  /// tensor and shapes.
  [[nodiscard]] static LlamaForCausalLM from_pretrained(const std::filesystem::path& directory, const PretrainedOptions& options = {});
};

}  // namespace troupe

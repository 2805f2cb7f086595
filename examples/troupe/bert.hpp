#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <troupe/data/tensor_dict.hpp>
#include <vector>

// B: batch, T: tokens, D: hidden size, C: labels

namespace troupe {

/// Hugging Face's config.json of a BERT.
struct BertConfig {
  std::int64_t vocab_size = 30522;
  std::int64_t hidden_size = 768;
  std::int64_t num_hidden_layers = 12;
  std::int64_t num_attention_heads = 12;
  std::int64_t intermediate_size = 3072;
  std::int64_t max_position_embeddings = 512;
  std::int64_t type_vocab_size = 2;
  std::int64_t num_labels = 2;
  double hidden_dropout_prob = 0.1;
  double attention_probs_dropout_prob = 0.1;
  std::optional<double> classifier_dropout = std::nullopt;  ///< nothing: as hidden_dropout_prob
  double layer_norm_eps = 1e-12;
  double initializer_range = 0.02;
  std::string hidden_act = "gelu";  ///< or "gelu_new", "gelu_pytorch_tanh", "relu"
  std::int64_t pad_token_id = 0;

  /// Throws Failure{FileNotFound, FileCorrupt, InvalidConfig} naming the file and the key.
  [[nodiscard]] static BertConfig from_file(const std::filesystem::path& config_json);
  /// Writes it as transformers does. Throws Failure{StorageUnavailable}.
  void save(const std::filesystem::path& config_json) const;
  /// Throws Failure{InvalidConfig} for sizes that make no model.
  void check(const std::string& where = "BertConfig") const;
};

struct BertOutput {
  at::Tensor loss;  ///< [] mean cross-entropy in fp32; undefined without labels
  at::Tensor logits_BC;
  at::Tensor last_hidden_state_BTD;
  at::Tensor pooler_output_BD;
  std::vector<at::Tensor> hidden_states;  ///< embeddings and every layer; only when asked for
};

namespace detail {
struct BertParts;
}

/// BERT with a pooled classification head (Devlin et al., arXiv 1810.04805); parameter names are
/// Hugging Face's
/// ("bert.encoder.layer.0.attention.self.query.weight"). Dropout and initial values come from
/// `rank_generator()`.
///
/// Threads: one caller. Errors: Failure{InvalidArgument} for a batch that does not fit (its tensor
/// named).
class BertForSequenceClassificationImpl : public torch::nn::Module {
 public:
  /// Weights drawn from normal(0, initializer_range), biases 0.
  explicit BertForSequenceClassificationImpl(BertConfig config);
  ~BertForSequenceClassificationImpl() override;
  /// Reads "input_ids", "attention_mask" (1: a real token), optional "token_type_ids" [B,T] and
  /// optional "labels" [B].
  [[nodiscard]] BertOutput forward(const Batch& batch, bool output_hidden_states = false);
  [[nodiscard]] const BertConfig& config() const noexcept { return config_; }
  /// Writes config.json and model.safetensors, which transformers loads.
  void save_pretrained(const std::filesystem::path& directory) const;

 private:
  friend class BertForSequenceClassification;
  struct Uninitialized {};
  BertForSequenceClassificationImpl(BertConfig config, Uninitialized);

  BertConfig config_;
  std::unique_ptr<detail::BertParts> parts_;
};

class BertForSequenceClassification
    : public torch::nn::ModuleHolder<BertForSequenceClassificationImpl> {
 public:
  using torch::nn::ModuleHolder<BertForSequenceClassificationImpl>::ModuleHolder;
  BertOutput operator()(const Batch& batch) { return impl_->forward(batch); }
  /// Loads a Hugging Face directory (config.json, model.safetensors or its shards), fp32 whatever
  /// the file's dtype. Names with or without "bert." are taken, and TensorFlow's "gamma" and
  /// "beta". A pooler or classifier that the file lacks is drawn anew from the rank's generator,
  /// and its tensors are named in `missing`.
  /// @param num_labels 0: what config.json says.
  /// Throws Failure{FileNotFound, FileCorrupt} naming file, tensor and shapes.
  [[nodiscard]] static BertForSequenceClassification from_pretrained(
      const std::filesystem::path& directory, std::int64_t num_labels = 0,
      std::vector<std::string>* missing = nullptr);
};

}  // namespace troupe

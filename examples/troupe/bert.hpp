#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <troupe/data/tensor_dict.hpp>
#include <troupe/unit.hpp>
#include <tuple>
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

  /// What a unit's hooks look at.
  auto tensors() {
    return std::tie(loss, logits_BC, last_hidden_state_BTD, pooler_output_BD, hidden_states);
  }
};

namespace detail {
struct BertParts;
}

/// BERT with a pooled classification head (Devlin et al., arXiv 1810.04805); parameter names are
/// Hugging Face's
/// ("bert.encoder.layer.0.attention.self.query.weight"). Dropout and initial values come from
/// `rank_generator()`. The model is a unit and so is each layer in it: call it as `model(batch)`.
///
/// Threads: one caller. Errors: Failure{InvalidArgument} for a batch that does not fit (its tensor
/// named).
class BertForSequenceClassificationImpl : public Unit {
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

class BertForSequenceClassification : public UnitHolder<BertForSequenceClassificationImpl> {
 public:
  using Holder = UnitHolder<BertForSequenceClassificationImpl>;
  using Holder::Holder;
  using Impl [[maybe_unused]] = BertForSequenceClassificationImpl;
  BertOutput operator()(const Batch& batch, bool output_hidden_states = false) {
    return Holder::operator()(batch, output_hidden_states);
  }
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

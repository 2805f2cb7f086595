#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <troupe/data/tensor_dict.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
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
  double layer_norm_eps = 1e-12;
  double initializer_range = 0.02;
  std::string hidden_act = "gelu";
  std::int64_t pad_token_id = 0;

  [[nodiscard]] static BertConfig from_file(const std::filesystem::path& config_json);
};

struct BertOutput {
  at::Tensor loss;                         ///< [] mean cross-entropy; undefined without labels
  at::Tensor logits_BC;
  at::Tensor last_hidden_state_BTD;
  std::vector<at::Tensor> hidden_states;   ///< embeddings and every layer; only when asked for
};

/// BERT with a pooled classification head; parameter names are Hugging Face's ("bert.encoder.layer.0…").
class BertForSequenceClassificationImpl : public torch::nn::Module {
 public:
  explicit BertForSequenceClassificationImpl(BertConfig config);
  ~BertForSequenceClassificationImpl() override;
  /// Reads "input_ids", "attention_mask", optional "token_type_ids" [B,T] and optional "labels" [B].
  [[nodiscard]] BertOutput forward(const Batch& batch, bool output_hidden_states = false);
  [[nodiscard]] const BertConfig& config() const noexcept { return config_; }
  /// Writes config.json and model.safetensors.
  void save_pretrained(const std::filesystem::path& directory) const;

 private:
  BertConfig config_;
};

class BertForSequenceClassification : public torch::nn::ModuleHolder<BertForSequenceClassificationImpl> {
 public:
  using torch::nn::ModuleHolder<BertForSequenceClassificationImpl>::ModuleHolder;
  BertOutput operator()(const Batch& batch) { return impl_->forward(batch); }
  /// Loads a Hugging Face directory (config.json, model.safetensors). A bare encoder without a head gets a new one,
  /// drawn from the rank's generator, and is told so in `missing`. Throws Failure naming file and tensor.
  [[nodiscard]] static BertForSequenceClassification from_pretrained(const std::filesystem::path& directory, std::int64_t num_labels = 2,
                                                                     std::vector<std::string>* missing = nullptr);
};

}  // namespace troupe

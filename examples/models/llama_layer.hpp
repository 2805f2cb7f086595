#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <troupe/linear.hpp>
#include <troupe/llama.hpp>
#include <troupe/unit.hpp>
#include <vector>

#include "rope.hpp"

// B: batch, T: tokens, S: tokens with those in the cache, D: hidden size, H: heads, K: size of a head, V: vocabulary

namespace troupe::detail {

/// What all layers of one forward share. Not a tensor argument of a unit: an engine would cast it.
struct LlamaPass {
  RopeTable rope;
  at::Tensor positions_BT;  ///< undefined: offset, offset + 1, … in every row
  std::int64_t offset = 0;  ///< tokens in the cache
  at::Tensor mask_B1TS;     ///< true: may be attended to; undefined: all tokens up to itself
  KvCache* cache = nullptr;
};

/// x / √(mean x² + eps) · weight.
struct RmsNorm {
  at::Tensor weight;
  double eps = 0;
  [[nodiscard]] at::Tensor operator()(const at::Tensor& x) const;
};

class LlamaDecoderLayerImpl : public Unit {
 public:
  LlamaDecoderLayerImpl(const LlamaConfig& config, std::int64_t index, at::ScalarType type, bool deferred);
  [[nodiscard]] at::Tensor forward(const at::Tensor& x_BTD, const std::shared_ptr<const LlamaPass>& pass);

  Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, o_proj{nullptr};
  Linear gate_proj{nullptr}, up_proj{nullptr}, down_proj{nullptr};
  RmsNorm input_layernorm, post_attention_layernorm;

 private:
  [[nodiscard]] at::Tensor attend(const at::Tensor& x_BTD, const LlamaPass& pass) const;
  [[nodiscard]] at::Tensor weigh(const at::Tensor& q_BHTK, const at::Tensor& k_BHSK, const at::Tensor& v_BHSK, const LlamaPass& pass) const;

  std::int64_t index_, num_heads_, num_kv_heads_, head_size_;
  double attention_dropout_;
};
TROUPE_UNIT(LlamaDecoderLayer);

class LlamaEmbeddingImpl : public Unit {
 public:
  /// @param padding_index  of a row that gets no gradient; -1: none.
  LlamaEmbeddingImpl(at::Tensor weight, std::int64_t padding_index);
  [[nodiscard]] at::Tensor forward(const at::Tensor& ids_BT) const;
  at::Tensor weight_VD;

 private:
  std::int64_t padding_index_;
};
TROUPE_UNIT(LlamaEmbedding);

struct LlamaHeadOutput {
  at::Tensor loss, logits;
  auto tensors() { return std::tie(loss, logits); }
};

class LlamaHeadImpl : public Unit {
 public:
  explicit LlamaHeadImpl(at::Tensor weight);
  /// @param x_ND, targets_N  for the loss; either undefined: none. @param x_logits  for the logits; undefined: none.
  [[nodiscard]] LlamaHeadOutput forward(const at::Tensor& x_ND, const at::Tensor& targets_N, const at::Tensor& x_logits) const;
  at::Tensor weight_VD;
};
TROUPE_UNIT(LlamaHead);

/// Handles of the modules that the tree owns.
struct LlamaParts {
  LlamaEmbedding embed_tokens{nullptr};
  std::vector<LlamaDecoderLayer> layers;
  RmsNorm norm;
  LlamaHead lm_head{nullptr};
  RopeTables rope;
};

}  // namespace troupe::detail

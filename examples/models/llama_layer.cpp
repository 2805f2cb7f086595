#include "llama_layer.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>

#include <cmath>
#include <limits>
#include <troupe/generate.hpp>
#include <troupe/parameter_source.hpp>

#include "dropout.hpp"
#include "llama_ops.hpp"

namespace troupe::detail {

namespace {

/// A plain module at `path`, made where it is missing.
torch::nn::Module& child(torch::nn::Module& parent, const std::string& name) {
  if (const auto* found = parent.named_children().find(name)) return **found;
  return *parent.register_module(name, std::make_shared<torch::nn::Module>(name));
}

}  // namespace

at::Tensor RmsNorm::operator()(const at::Tensor& x) const { return rms_norm(x, weight, eps); }

LlamaDecoderLayerImpl::LlamaDecoderLayerImpl(const LlamaConfig& config, std::int64_t index, at::ScalarType type, bool deferred)
    : Unit("LlamaDecoderLayer"),
      index_(index),
      num_heads_(config.num_attention_heads),
      num_kv_heads_(config.kv_heads()),
      head_size_(config.head_size()),
      attention_dropout_(config.attention_dropout) {
  const auto d = config.hidden_size;
  auto& attention = child(*this, "self_attn");
  const auto linear = [&](torch::nn::Module& parent, const char* name, std::int64_t in, std::int64_t out, bool bias) {
    return parent.register_module(name, Linear{in, out, bias, type, deferred});
  };
  q_proj = linear(attention, "q_proj", d, num_heads_ * head_size_, config.attention_bias);
  k_proj = linear(attention, "k_proj", d, num_kv_heads_ * head_size_, config.attention_bias);
  v_proj = linear(attention, "v_proj", d, num_kv_heads_ * head_size_, config.attention_bias);
  o_proj = linear(attention, "o_proj", num_heads_ * head_size_, d, config.attention_bias);
  auto& mlp = child(*this, "mlp");
  gate_proj = linear(mlp, "gate_proj", d, config.intermediate_size, config.mlp_bias);
  up_proj = linear(mlp, "up_proj", d, config.intermediate_size, config.mlp_bias);
  down_proj = linear(mlp, "down_proj", config.intermediate_size, d, config.mlp_bias);
  const auto norm = [&](const char* name) {
    auto weight = deferred ? deferred_parameter({d}, type) : at::empty({d}, at::TensorOptions().dtype(type));
    return RmsNorm{child(*this, name).register_parameter("weight", weight), config.rms_norm_eps};
  };
  input_layernorm = norm("input_layernorm");
  post_attention_layernorm = norm("post_attention_layernorm");
}

/// softmax(q k^T / √K) v. Heads of keys and values serve several heads of queries each.
at::Tensor LlamaDecoderLayerImpl::weigh(const at::Tensor& q_BHTK, const at::Tensor& k_BHSK, const at::Tensor& v_BHSK, const LlamaPass& pass) const {
  const auto b = q_BHTK.size(0), t = q_BHTK.size(2), s = k_BHSK.size(2), groups = num_heads_ / num_kv_heads_;
  const bool causal = t > 1 && !pass.mask_B1TS.defined();
  const double p = is_training() ? attention_dropout_ : 0;
  if (p == 0) {
    const auto mask = pass.mask_B1TS.defined() ? std::optional{pass.mask_B1TS} : std::nullopt;
    if (t == 1 && groups > 1) {  // queries of a group are as tokens of one head: nothing is repeated
      const auto q_BhGK = q_BHTK.view({b, num_kv_heads_, groups, head_size_});
      return at::scaled_dot_product_attention(q_BhGK, k_BHSK, v_BHSK, mask).view({b, num_heads_, 1, head_size_});
    }
    return at::scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, mask, 0, causal, std::nullopt, groups > 1);
  }
  // LibTorch's dropout inside attention cannot draw from the rank's generator.
  const auto repeat = [&](const at::Tensor& x) { return x.repeat_interleave(groups, 1); };
  auto scores_BHTS = at::matmul(q_BHTK, repeat(k_BHSK).transpose(2, 3)) / std::sqrt(static_cast<double>(head_size_));
  const auto mask = causal ? at::ones({t, s}, q_BHTK.options().dtype(at::kBool)).tril() : pass.mask_B1TS;
  if (mask.defined()) scores_BHTS = scores_BHTS.masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
  return at::matmul(dropout(at::softmax(scores_BHTS, -1), p), repeat(v_BHSK));
}

at::Tensor LlamaDecoderLayerImpl::attend(const at::Tensor& x_BTD, const LlamaPass& pass) const {
  const auto b = x_BTD.size(0), t = x_BTD.size(1);
  const auto q_BHTK = rotate_heads(q_proj->forward(x_BTD), num_heads_, pass.rope, pass.positions_BT, pass.offset);
  auto k_BHSK = rotate_heads(k_proj->forward(x_BTD), num_kv_heads_, pass.rope, pass.positions_BT, pass.offset);
  auto v_BHSK = v_proj->forward(x_BTD).view({b, t, num_kv_heads_, head_size_}).transpose(1, 2);
  if (pass.cache) std::tie(k_BHSK, v_BHSK) = pass.cache->append(index_, k_BHSK, v_BHSK);
  return o_proj->forward(weigh(q_BHTK, k_BHSK, v_BHSK, pass).transpose(1, 2).reshape({b, t, num_heads_ * head_size_}));
}

at::Tensor LlamaDecoderLayerImpl::forward(const at::Tensor& x_BTD, const std::shared_ptr<const LlamaPass>& pass) {
  const auto attended = x_BTD + attend(input_layernorm(x_BTD), *pass);
  const auto normed = post_attention_layernorm(attended);
  return attended + down_proj->forward(silu_times(gate_proj->forward(normed), up_proj->forward(normed)));
}

LlamaEmbeddingImpl::LlamaEmbeddingImpl(at::Tensor weight, std::int64_t padding_index)
    : Unit("LlamaEmbedding"), weight_VD(register_parameter("weight", std::move(weight))), padding_index_(padding_index) {}

at::Tensor LlamaEmbeddingImpl::forward(const at::Tensor& ids_BT) const { return at::embedding(weight_VD, ids_BT, padding_index_); }

LlamaHeadImpl::LlamaHeadImpl(at::Tensor weight) : Unit("LlamaHead"), weight_VD(register_parameter("weight", std::move(weight))) {}

LlamaHeadOutput LlamaHeadImpl::forward(const at::Tensor& x_ND, const at::Tensor& targets_N, const at::Tensor& x_logits) const {
  LlamaHeadOutput out;
  if (targets_N.defined()) out.loss = linear_cross_entropy(x_ND, weight_VD, targets_N);
  if (x_logits.defined()) out.logits = at::linear(x_logits, weight_VD);
  return out;
}

}  // namespace troupe::detail

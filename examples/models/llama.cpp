#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <troupe/errors.hpp>
#include <troupe/generate.hpp>
#include <troupe/llama.hpp>
#include <troupe/parameter_source.hpp>
#include <troupe/random.hpp>

#include "llama_layer.hpp"
#include "llama_types.hpp"

namespace troupe {

namespace {

constexpr std::int64_t ignored = -100;  // a label that is not predicted

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

/// A [B, T] tensor of the batch as Long; undefined where there is none.
at::Tensor optional_BT(const Batch& batch, const char* name, const at::Tensor& ids_BT) {
  const auto* found = batch.find(name);
  if (!found) return {};
  if (found->sizes() != ids_BT.sizes()) {
    refuse("batch tensor '" + std::string(name) + "' has shape " + c10::str(found->sizes()) + ", input_ids has " + c10::str(ids_BT.sizes()));
  }
  return found->to(at::kLong);
}

/// Looking at values costs a synchronisation on a GPU, where kernels assert instead.
void check_range(const at::Tensor& values, const char* name, std::int64_t end) {
  if (!values.is_cpu() || values.numel() == 0) return;
  const auto least = values.min().item<std::int64_t>(), most = values.max().item<std::int64_t>();
  if (least >= 0 && most < end) return;
  refuse("batch tensor '" + std::string(name) + "' has " + std::to_string(least < 0 ? least : most) + ", outside of 0 to " + std::to_string(end - 1));
}

/// True when a token that is padding stands before one that is not.
bool padded_on_left(const at::Tensor& mask_BT) {
  if (!mask_BT.defined() || mask_BT.size(1) < 2) return false;
  return (mask_BT.narrow(1, 1, mask_BT.size(1) - 1) > mask_BT.narrow(1, 0, mask_BT.size(1) - 1)).any().item<bool>();
}

/// Places in their document, from 0.
at::Tensor positions_in_documents(const at::Tensor& documents_BT) {
  const auto t = documents_BT.size(1);
  const auto places = at::arange(t, documents_BT.options()).expand_as(documents_BT);
  if (t == 1) return places.contiguous();
  const auto begins = documents_BT.narrow(1, 1, t - 1) != documents_BT.narrow(1, 0, t - 1);
  const auto first = at::cat({at::ones({documents_BT.size(0), 1}, begins.options()), begins}, 1);
  return places - std::get<0>(at::where(first, places, 0).cummax(1));
}

}  // namespace

LlamaForCausalLMImpl::LlamaForCausalLMImpl(LlamaConfig config, DType dtype, bool deferred, Empty)
    : Unit("LlamaForCausalLM"), config_(std::move(config)), parts_(std::make_unique<detail::LlamaParts>()) {
  config_.check();
  const auto type = detail::scalar_type(dtype);
  const auto make = [&](at::IntArrayRef sizes) { return deferred ? deferred_parameter(sizes, type) : at::empty(sizes, at::TensorOptions().dtype(type)); };
  const auto plain = [](const char* name) { return std::make_shared<torch::nn::Module>(name); };
  const auto d = config_.hidden_size;
  const auto model = register_module("model", plain("LlamaModel"));
  parts_->embed_tokens = model->register_module("embed_tokens", detail::LlamaEmbedding{make({config_.vocab_size, d}), config_.pad_token_id.value_or(-1)});
  const auto layers = model->register_module("layers", plain("ModuleList"));
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    parts_->layers.push_back(layers->register_module(std::to_string(i), detail::LlamaDecoderLayer{config_, i, type, deferred}));
  }
  parts_->norm = {model->register_module("norm", plain("LlamaRMSNorm"))->register_parameter("weight", make({d})), config_.rms_norm_eps};
  auto& words = parts_->embed_tokens->weight_VD;
  parts_->lm_head = register_module("lm_head", detail::LlamaHead{config_.tie_word_embeddings ? words : make({config_.vocab_size, d})});
  parts_->rope = detail::RopeTables{config_};
}

LlamaForCausalLMImpl::LlamaForCausalLMImpl(LlamaConfig config, DType dtype) : LlamaForCausalLMImpl(std::move(config), dtype, false, Empty{}) {
  const c10::AutoGradMode no_graph{false};
  for (auto& item : named_parameters()) {
    auto& parameter = item.value();
    if (item.key().ends_with("norm.weight")) parameter.fill_(1);
    else if (item.key().ends_with(".bias")) parameter.zero_();
    else if (item.key() != "lm_head.weight" || !config_.tie_word_embeddings) parameter.normal_(0, config_.initializer_range, rank_generator());
    if (item.key() == "model.embed_tokens.weight" && config_.pad_token_id) parameter.select(0, *config_.pad_token_id).zero_();
  }
}

LlamaForCausalLMImpl::~LlamaForCausalLMImpl() = default;

std::shared_ptr<const detail::LlamaPass> LlamaForCausalLMImpl::plan(const Batch& batch, const at::Tensor& ids_BT, KvCache* cache) {
  const c10::AutoGradMode no_graph{false};
  const auto b = ids_BT.size(0), t = ids_BT.size(1);
  auto pass = std::make_shared<detail::LlamaPass>();
  pass->cache = cache;
  pass->offset = cache ? cache->length() : 0;
  const auto s = pass->offset + t;
  const auto mask_BT = optional_BT(batch, "attention_mask", ids_BT);
  const auto documents_BT = optional_BT(batch, "document_ids", ids_BT);
  pass->positions_BT = optional_BT(batch, "position_ids", ids_BT);
  if (cache && documents_BT.defined()) refuse("'document_ids' and a cache: packed rows are for training");
  if (cache && cache->batch() != b) refuse("the cache has " + std::to_string(cache->batch()) + " rows, input_ids has " + std::to_string(b));
  const bool all_real = !mask_BT.defined() || mask_BT.to(at::kBool).all().item<bool>();
  const bool earlier_padding = cache && cache->real().defined();
  // Real tokens never see what stands behind them: padding on the right needs no mask.
  if (earlier_padding || (!all_real && (cache || padded_on_left(mask_BT)))) {
    const auto now_BT = mask_BT.defined() ? mask_BT.to(at::kBool) : at::ones({b, t}, ids_BT.options().dtype(at::kBool));
    auto real_BS = now_BT;
    if (pass->offset > 0) real_BS = at::cat({earlier_padding ? cache->real() : at::ones({b, pass->offset}, now_BT.options()), now_BT}, 1);
    if (!pass->positions_BT.defined()) pass->positions_BT = (real_BS.cumsum(1) - 1).clamp_min(0).narrow(1, pass->offset, t).contiguous();
    const auto causal_TS = at::ones({t, s}, real_BS.options()).tril(pass->offset);
    const auto self_TS = causal_TS.triu(pass->offset);  // a token that sees nothing else sees itself: no row of scores is empty
    pass->mask_B1TS = (causal_TS.logical_and(real_BS.unsqueeze(1)).logical_or(self_TS)).unsqueeze(1);
  } else if (pass->offset > 0 && t > 1) {
    pass->mask_B1TS = at::ones({1, 1, t, s}, ids_BT.options().dtype(at::kBool)).tril(pass->offset);
  }
  if (documents_BT.defined()) {
    if (!pass->positions_BT.defined()) pass->positions_BT = positions_in_documents(documents_BT);
    const auto same_BTT = documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1);
    const auto causal_TT = at::ones({t, t}, same_BTT.options()).tril();
    auto mask = same_BTT.logical_and(causal_TT).unsqueeze(1);
    if (pass->mask_B1TS.defined()) mask = mask.logical_and(pass->mask_B1TS);
    pass->mask_B1TS = mask;
  }
  const auto& positions = pass->positions_BT;
  const auto length = positions.defined() && positions.numel() ? positions.max().item<std::int64_t>() + 1 : s;
  if (length > config_.max_position_embeddings && config_.rope_scaling.rope_type != "dynamic") {
    refuse("a row of " + std::to_string(length) + " tokens is longer than this model's context of " + std::to_string(config_.max_position_embeddings) +
           " (max_position_embeddings)");
  }
  if (positions.defined()) check_range(positions, "position_ids", length);
  pass->rope = parts_->rope.table(length, length);
  return pass;
}

CausalLMOutput LlamaForCausalLMImpl::forward(const Batch& batch, const LlamaForwardOptions& options) {
  const auto ids_BT = batch["input_ids"].to(at::kLong);
  if (ids_BT.dim() != 2 || ids_BT.numel() == 0) refuse("batch tensor 'input_ids' has shape " + c10::str(ids_BT.sizes()) + ", not [B, T]");
  check_range(ids_BT, "input_ids", config_.vocab_size);
  const auto labels_BT = optional_BT(batch, "labels", ids_BT);
  // They hold little, and to run them again costs as much as it saves.
  parts_->embed_tokens->set_activation_checkpointing(false);
  parts_->lm_head->set_activation_checkpointing(false);

  const c10::AutoGradMode graph{c10::GradMode::is_enabled() && !options.cache};
  const auto pass = plan(batch, ids_BT, options.cache);
  auto x_BTD = parts_->embed_tokens(ids_BT);
  for (auto& layer : parts_->layers) x_BTD = layer(x_BTD, pass);
  if (options.cache) {
    const auto* mask = batch.find("attention_mask");
    options.cache->advance(ids_BT.size(1), mask ? mask->to(at::kBool) : at::Tensor{});
  }
  CausalLMOutput out;
  out.last_hidden_state_BTD = parts_->norm(x_BTD);
  finish(batch, labels_BT, options, out);
  return out;
}

/// Loss and logits.
void LlamaForCausalLMImpl::finish(const Batch& batch, const at::Tensor& labels_BT, const LlamaForwardOptions& options, CausalLMOutput& out) {
  using Logits = LlamaForwardOptions::Logits;
  const auto& x_BTD = out.last_hidden_state_BTD;
  const auto t = x_BTD.size(1);
  at::Tensor x_ND, targets_N, x_logits;
  if (labels_BT.defined() && t > 1) {
    auto targets_BT = labels_BT.narrow(1, 1, t - 1);
    if (const auto* documents = batch.find("document_ids")) {
      const auto begins = documents->narrow(1, 1, t - 1) != documents->narrow(1, 0, t - 1);
      targets_BT = targets_BT.masked_fill(begins, ignored);
    }
    const auto flat = targets_BT.reshape({-1});
    const auto places_N = (flat != ignored).nonzero().squeeze(1);
    targets_N = flat.index_select(0, places_N);
    check_range(targets_N, "labels", config_.vocab_size);
    out.num_targets = places_N.size(0);
    x_ND = x_BTD.narrow(1, 0, t - 1).reshape({-1, x_BTD.size(2)}).index_select(0, places_N);
  }
  const bool nothing = labels_BT.defined() && out.num_targets == 0;
  if (nothing) {  // a finite loss of weight 0 that reaches every unit, as on the ranks that have targets
    x_ND = x_BTD.reshape({-1, x_BTD.size(2)}).narrow(0, 0, 1);
    targets_N = at::zeros({1}, labels_BT.options());
  }
  const bool all = options.logits == Logits::All || (options.logits == Logits::Auto && !labels_BT.defined());
  if (all) x_logits = x_BTD;
  if (options.logits == Logits::Last) x_logits = x_BTD.narrow(1, t - 1, 1);
  const auto made = parts_->lm_head(x_ND, targets_N, x_logits);
  out.loss = nothing ? made.loss * 0 : made.loss;
  out.logits_BTV = made.logits;
}

}  // namespace troupe

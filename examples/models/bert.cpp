#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <limits>
#include <troupe/bert.hpp>
#include <troupe/errors.hpp>
#include <troupe/random.hpp>

#include "bert_layer.hpp"
#include "dropout.hpp"

namespace troupe {
namespace detail {

/// Handles of the parameters, which the module tree owns.
struct BertParts {
  at::Tensor words_VD, positions_PD, types_D;
  LayerNorm norm;
  std::vector<BertLayer> layers;
  Linear pooler, classifier;
};

void initialize_parameter(const std::string& name, const at::Tensor& parameter,
                          const BertConfig& config) {
  const c10::AutoGradMode no_grad{false};
  auto target = parameter;
  if (name.ends_with(".bias")) {
    target.zero_();
  } else if (name.ends_with("LayerNorm.weight")) {
    target.fill_(1);
  } else {
    target.normal_(0, config.initializer_range, rank_generator());
    const bool padded = name.ends_with("word_embeddings.weight") && config.pad_token_id >= 0;
    if (padded) target.select(0, config.pad_token_id).zero_();
  }
}

}  // namespace detail

namespace {

at::Tensor add_embedding(torch::nn::Module& parent, const std::string& name, std::int64_t rows,
                         std::int64_t size) {
  return detail::add_child(parent, name)->register_parameter("weight", at::empty({rows, size}));
}

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

/// Checks that `tensor` has the shape of `like`.
void check_like(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  if (tensor.sizes() != like.sizes()) {
    refuse("batch tensor '" + std::string(name) + "' has shape " + c10::str(tensor.sizes()) +
           ", input_ids has " + c10::str(like.sizes()));
  }
}

/// 0 where attention_mask is 1, the lowest number where it is 0; undefined when every token is
/// real, so that nothing is added. (Looking costs a synchronisation on a GPU, so only on the CPU.)
at::Tensor additive_mask(const at::Tensor& mask_BT, at::ScalarType dtype) {
  if (mask_BT.is_cpu() && mask_BT.all().item<bool>()) return {};
  const auto lowest =
      dtype == at::kBFloat16 ? -3.3895313892515355e38 : std::numeric_limits<float>::lowest();
  return (1 - mask_BT.to(dtype)).mul_(lowest).unsqueeze(1).unsqueeze(1);
}

}  // namespace

BertForSequenceClassificationImpl::BertForSequenceClassificationImpl(BertConfig config,
                                                                     Uninitialized)
    : Unit("BertForSequenceClassification"),
      config_(std::move(config)),
      parts_(std::make_unique<detail::BertParts>()) {
  config_.check();
  const auto d = config_.hidden_size;
  const auto bert = detail::add_child(*this, "bert");
  const auto embeddings = detail::add_child(*bert, "embeddings");
  parts_->words_VD = add_embedding(*embeddings, "word_embeddings", config_.vocab_size, d);
  parts_->positions_PD =
      add_embedding(*embeddings, "position_embeddings", config_.max_position_embeddings, d);
  parts_->types_D = add_embedding(*embeddings, "token_type_embeddings", config_.type_vocab_size, d);
  parts_->norm = detail::add_layer_norm(*embeddings, "LayerNorm", d, config_.layer_norm_eps);
  const auto list = detail::add_child(*detail::add_child(*bert, "encoder"), "layer");
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    parts_->layers.emplace_back(
        list->register_module(std::to_string(i), detail::BertLayer{config_}));
  }
  parts_->pooler = detail::add_linear(*detail::add_child(*bert, "pooler"), "dense", d, d);
  parts_->classifier = detail::add_linear(*this, "classifier", d, config_.num_labels);
}

BertForSequenceClassificationImpl::BertForSequenceClassificationImpl(BertConfig config)
    : BertForSequenceClassificationImpl(std::move(config), Uninitialized{}) {
  for (const auto& item : named_parameters()) {
    detail::initialize_parameter(item.key(), item.value(), config_);
  }
}

BertForSequenceClassificationImpl::~BertForSequenceClassificationImpl() = default;

BertOutput BertForSequenceClassificationImpl::forward(const Batch& batch,
                                                      bool output_hidden_states) {
  const auto& ids_BT = batch["input_ids"];
  const auto& mask_BT = batch["attention_mask"];
  if (ids_BT.dim() != 2)
    refuse("batch tensor 'input_ids' has shape " + c10::str(ids_BT.sizes()) + ", not [B, T]");
  check_like(mask_BT, ids_BT, "attention_mask");
  const auto t = ids_BT.size(1);
  if (t > config_.max_position_embeddings) {
    refuse("batch tensor 'input_ids' has " + std::to_string(t) +
           " tokens a row, this model at most " + std::to_string(config_.max_position_embeddings) +
           " (max_position_embeddings)");
  }
  auto x_BTD = at::embedding(parts_->words_VD, ids_BT, config_.pad_token_id);
  if (const auto* types_BT = batch.find("token_type_ids")) {
    check_like(*types_BT, ids_BT, "token_type_ids");
    x_BTD = x_BTD + at::embedding(parts_->types_D, *types_BT);
  } else {
    x_BTD = x_BTD + parts_->types_D.select(0, 0);
  }
  const double p = is_training() ? config_.hidden_dropout_prob : 0;
  x_BTD = detail::dropout(parts_->norm(x_BTD + parts_->positions_PD.narrow(0, 0, t)), p);

  BertOutput out;
  const auto mask_B11T = additive_mask(mask_BT, x_BTD.scalar_type());
  for (auto& layer : parts_->layers) {
    if (output_hidden_states) out.hidden_states.push_back(x_BTD);
    x_BTD = layer(x_BTD, mask_B11T);
  }
  if (output_hidden_states) out.hidden_states.push_back(x_BTD);
  out.last_hidden_state_BTD = x_BTD;
  out.pooler_output_BD = parts_->pooler(x_BTD.select(1, 0)).tanh();
  const double head_p =
      is_training() ? config_.classifier_dropout.value_or(config_.hidden_dropout_prob) : 0;
  out.logits_BC = parts_->classifier(detail::dropout(out.pooler_output_BD, head_p));
  if (const auto* labels_B = batch.find("labels")) {
    out.loss = at::cross_entropy_loss(out.logits_BC.to(at::kFloat), *labels_B);
  }
  return out;
}

}  // namespace troupe

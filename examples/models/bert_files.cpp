#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <troupe/bert.hpp>
#include <troupe/errors.hpp>
#include <troupe/tensor_files.hpp>

#include "bert_layer.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

void read_number(const json& object, const char* key, const fs::path& file, auto& out) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  constexpr bool whole = std::is_same_v<std::remove_reference_t<decltype(out)>, std::int64_t>;
  if (whole ? !found->is_number_integer() : !found->is_number()) {
    throw Failure{Errc::InvalidConfig,
                  file.string() + ": '" + key + "' should be a number, not " + found->dump()};
  }
  found->get_to(out);
}

/// The name that this model gives to a tensor of a file: old heads have "gamma" and "beta", bare
/// encoders no "bert.".
std::string canonical(std::string name) {
  const auto replace_end = [&](std::string_view from, std::string_view to) {
    if (name.ends_with(from)) name.replace(name.size() - from.size(), from.size(), to);
  };
  replace_end("LayerNorm.gamma", "LayerNorm.weight");
  replace_end("LayerNorm.beta", "LayerNorm.bias");
  for (const auto* const part : {"embeddings.", "encoder.", "pooler."}) {
    if (name.starts_with(part)) return "bert." + name;
  }
  return name;
}

bool may_be_missing(const std::string& name) {
  return name.starts_with("classifier.") || name.starts_with("bert.pooler.");
}

/// Copies `tensors` into the model's parameters; names what had to be drawn anew.
std::vector<std::string> load(BertForSequenceClassificationImpl& model, const TensorMap& tensors,
                              const fs::path& directory) {
  std::map<std::string, at::Tensor> by_name;
  for (const auto& [name, tensor] : tensors) by_name.emplace(canonical(name), tensor);
  std::vector<std::string> missing;
  const c10::AutoGradMode no_grad{false};
  for (const auto& item : model.named_parameters()) {
    const auto found = by_name.find(item.key());
    auto parameter = item.value();
    if (found != by_name.end()) {
      if (found->second.sizes() != parameter.sizes()) {
        throw Failure{Errc::FileCorrupt, directory.string() + ": tensor '" + item.key() +
                                             "' has shape " + c10::str(found->second.sizes()) +
                                             ", config.json wants " + c10::str(parameter.sizes())};
      }
      parameter.copy_(found->second);
    } else if (may_be_missing(item.key())) {
      detail::initialize_parameter(item.key(), parameter, model.config());
      missing.push_back(item.key());
    } else {
      throw Failure{Errc::FileCorrupt, directory.string() + ": lacks the tensor '" + item.key() +
                                           "' of shape " + c10::str(parameter.sizes())};
    }
  }
  return missing;
}

nlohmann::ordered_json to_json(const BertConfig& c) {
  nlohmann::ordered_json out{{"architectures", {"BertForSequenceClassification"}},
                             {"model_type", "bert"},
                             {"vocab_size", c.vocab_size},
                             {"hidden_size", c.hidden_size},
                             {"num_hidden_layers", c.num_hidden_layers},
                             {"num_attention_heads", c.num_attention_heads},
                             {"intermediate_size", c.intermediate_size},
                             {"max_position_embeddings", c.max_position_embeddings},
                             {"type_vocab_size", c.type_vocab_size},
                             {"hidden_dropout_prob", c.hidden_dropout_prob},
                             {"attention_probs_dropout_prob", c.attention_probs_dropout_prob},
                             {"layer_norm_eps", c.layer_norm_eps},
                             {"initializer_range", c.initializer_range},
                             {"hidden_act", c.hidden_act},
                             {"pad_token_id", c.pad_token_id}};
  if (c.classifier_dropout) out["classifier_dropout"] = *c.classifier_dropout;
  for (std::int64_t i = 0; i < c.num_labels; ++i) {
    const auto label = "LABEL_" + std::to_string(i);
    out["id2label"][std::to_string(i)] = label;
    out["label2id"][label] = i;
  }
  return out;
}

}  // namespace

void BertConfig::check(const std::string& where) const {
  const auto refuse = [&](const std::string& text) {
    throw Failure{Errc::InvalidConfig, where + ": " + text};
  };
  const std::pair<const char*, std::int64_t> sizes[] = {
      {"vocab_size", vocab_size},
      {"hidden_size", hidden_size},
      {"num_hidden_layers", num_hidden_layers},
      {"num_attention_heads", num_attention_heads},
      {"intermediate_size", intermediate_size},
      {"max_position_embeddings", max_position_embeddings},
      {"type_vocab_size", type_vocab_size}};
  for (const auto& [key, value] : sizes) {
    if (value < 1 || value > (std::int64_t{1} << 31))
      refuse(std::string(key) + " = " + std::to_string(value) + " makes no model");
  }
  if (hidden_size % num_attention_heads != 0) {
    refuse("hidden_size " + std::to_string(hidden_size) +
           " is no multiple of num_attention_heads " + std::to_string(num_attention_heads));
  }
  if (num_labels < 2)
    refuse("num_labels = " + std::to_string(num_labels) +
           "; this model classifies into 2 or more (no regression)");
  if (pad_token_id >= vocab_size) refuse("pad_token_id is outside the vocabulary");
  const std::pair<const char*, double> rates[] = {
      {"hidden_dropout_prob", hidden_dropout_prob},
      {"attention_probs_dropout_prob", attention_probs_dropout_prob},
      {"classifier_dropout", classifier_dropout.value_or(0)}};
  for (const auto& [key, value] : rates) {
    if (!(value >= 0 && value < 1))
      refuse(std::string(key) + " = " + std::to_string(value) + " should be in [0, 1)");
  }
  for (const auto* const act : {"gelu", "gelu_new", "gelu_pytorch_tanh", "relu"}) {
    if (hidden_act == act) return;
  }
  refuse("hidden_act '" + hidden_act + "' is none of gelu, gelu_new, gelu_pytorch_tanh, relu");
}

BertConfig BertConfig::from_file(const fs::path& file) {
  std::ifstream in{file, std::ios::binary};
  if (!in) throw Failure{Errc::FileNotFound, file.string() + ": no such file"};
  const auto object = json::parse(in, nullptr, false);
  if (!object.is_object()) throw Failure{Errc::FileCorrupt, file.string() + ": is no JSON object"};
  const auto type = object.value("model_type", json("bert"));
  if (type != "bert")
    throw Failure{Errc::InvalidConfig,
                  file.string() + ": model_type is " + type.dump() + ", not \"bert\""};
  BertConfig c;
  read_number(object, "vocab_size", file, c.vocab_size);
  read_number(object, "hidden_size", file, c.hidden_size);
  read_number(object, "num_hidden_layers", file, c.num_hidden_layers);
  read_number(object, "num_attention_heads", file, c.num_attention_heads);
  read_number(object, "intermediate_size", file, c.intermediate_size);
  read_number(object, "max_position_embeddings", file, c.max_position_embeddings);
  read_number(object, "type_vocab_size", file, c.type_vocab_size);
  read_number(object, "pad_token_id", file, c.pad_token_id);
  read_number(object, "hidden_dropout_prob", file, c.hidden_dropout_prob);
  read_number(object, "attention_probs_dropout_prob", file, c.attention_probs_dropout_prob);
  read_number(object, "layer_norm_eps", file, c.layer_norm_eps);
  read_number(object, "initializer_range", file, c.initializer_range);
  if (const auto found = object.find("classifier_dropout");
      found != object.end() && !found->is_null()) {
    read_number(object, "classifier_dropout", file, c.classifier_dropout.emplace());
  }
  if (const auto found = object.find("id2label"); found != object.end() && found->is_object()) {
    c.num_labels = static_cast<std::int64_t>(found->size());
  }
  read_number(object, "num_labels", file, c.num_labels);
  if (const auto found = object.find("hidden_act"); found != object.end() && found->is_string())
    c.hidden_act = *found;
  if (const auto kind = object.value("position_embedding_type", json("absolute"));
      kind != "absolute") {
    throw Failure{Errc::Unsupported,
                  file.string() + ": position_embedding_type " + kind.dump() + " is not supported"};
  }
  c.check(file.string());
  return c;
}

void BertConfig::save(const fs::path& file) const {
  std::ofstream out{file, std::ios::binary};
  if (!(out << to_json(*this).dump(2) << '\n').flush()) {
    throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be written"};
  }
}

BertForSequenceClassification BertForSequenceClassification::from_pretrained(
    const fs::path& directory, std::int64_t num_labels, std::vector<std::string>* missing) {
  if (!fs::is_directory(directory))
    throw Failure{Errc::FileNotFound, directory.string() + ": no such directory"};
  auto config = BertConfig::from_file(directory / "config.json");
  if (num_labels != 0) config.num_labels = num_labels;
  const std::shared_ptr<Impl> model{new Impl{std::move(config), Impl::Uninitialized{}}};
  auto drawn = load(*model, read_model_directory(directory), directory);
  if (missing) *missing = std::move(drawn);
  return BertForSequenceClassification{model};
}

void BertForSequenceClassificationImpl::save_pretrained(const fs::path& directory) const {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error)
    throw Failure{Errc::StorageUnavailable,
                  directory.string() + ": cannot be made: " + error.message()};
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& item : named_parameters()) tensors.emplace_back(item.key(), item.value());
  write_safetensors(directory / "model.safetensors", tensors);
  config_.save(directory / "config.json");
}

}  // namespace troupe

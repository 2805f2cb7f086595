#include "llama_layout.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

namespace troupe::detail {

namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void unsupported(const GgufFile& file, const std::string& text) { throw Failure{Errc::Unsupported, file.path().string() + ": " + text}; }
[[noreturn]] void corrupt(const GgufFile& file, const std::string& text) { throw Failure{Errc::FileCorrupt, file.path().string() + ": " + text}; }

/// Shortest digits that give the same float32: 1e-05, not 9.999999747378752e-06.
std::string shortest(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, static_cast<float>(value)).ptr;
  return {text, end};
}

double widened(double value) {
  double out = 0;
  const auto text = shortest(value);
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

std::int64_t size_of_key(const GgufFile& file, const std::string& key) {
  const auto value = file.integer(key);
  if (value < 1 || value > std::int64_t{1} << 31) corrupt(file, "metadata '" + key + "' is " + std::to_string(value));
  return value;
}

const GgufTensor* find(const GgufFile& file, const std::string& name) {
  const auto& tensors = file.header().tensors;
  const auto found = std::ranges::find(tensors, name, &GgufTensor::name);
  return found == tensors.end() ? nullptr : &*found;
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void read_rope(const GgufFile& file, LlamaFacts& facts) {
  if (file.has("llama.rope.freq_base")) facts.rope_theta = widened(file.number("llama.rope.freq_base"));
  if (file.has("llama.rope.dimension_count") && file.integer("llama.rope.dimension_count") != facts.head_dim)
    unsupported(file, "only a part of each head is rotated (llama.rope.dimension_count)");
  if (file.has("llama.rope.scaling.type")) {
    const auto& type = file.text("llama.rope.scaling.type");
    if (type == "linear") {
      facts.rope_factor = widened(file.number("llama.rope.scaling.factor"));
    } else if (type != "none") {
      unsupported(file, "llama.rope.scaling.type '" + type + "' is not converted");
    }
  } else if (file.has("llama.rope.scale_linear")) {
    facts.rope_factor = widened(file.number("llama.rope.scale_linear"));
  }
  if (find(file, "rope_freqs.weight") != nullptr)
    unsupported(file, "tensor 'rope_freqs.weight' holds scaled frequencies, whose parameters the file does not have");
}

/// Takes a tensor out of those of the file that nobody has asked for yet.
class Matcher {
 public:
  explicit Matcher(const GgufFile& file) : file_(file) {
    for (const auto& tensor : file.header().tensors) left_.insert(tensor.name);
  }

  void take(const std::string& source, const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t interleaved_heads = 0) {
    const auto* tensor = find(file_, source);
    if (tensor == nullptr) corrupt(file_, "tensor '" + source + "' is missing");
    const std::vector<std::uint64_t> wanted{shape.begin(), shape.end()};
    if (tensor->shape != wanted)
      corrupt(file_, "tensor '" + source + "' has shape " + shape_text(tensor->shape) + ", the metadata say " + shape_text(wanted));
    if (shape.size() == 1 && block_of(tensor->type).elements != 1) unsupported(file_, "tensor '" + source + "' is a quantised vector");
    left_.erase(source);
    out_.push_back({name, tensor, interleaved_heads});
  }

  std::vector<LlamaTensor> done() {
    if (!left_.empty()) unsupported(file_, "tensor '" + *left_.begin() + "' has no place in a Llama model");
    return std::move(out_);
  }

 private:
  const GgufFile& file_;
  std::set<std::string> left_;
  std::vector<LlamaTensor> out_;
};

}  // namespace

LlamaFacts read_llama_facts(const GgufFile& file) {
  if (const auto& architecture = file.text("general.architecture"); architecture != "llama")
    unsupported(file, "general.architecture is '" + architecture + "'; 'llama' is converted");
  if (file.has("llama.expert_count") && file.integer("llama.expert_count") > 0) unsupported(file, "a mixture of experts (llama.expert_count)");
  LlamaFacts facts;
  facts.layers = size_of_key(file, "llama.block_count");
  facts.hidden = size_of_key(file, "llama.embedding_length");
  facts.intermediate = size_of_key(file, "llama.feed_forward_length");
  facts.context = size_of_key(file, "llama.context_length");
  facts.heads = size_of_key(file, "llama.attention.head_count");
  facts.kv_heads = file.has("llama.attention.head_count_kv") ? size_of_key(file, "llama.attention.head_count_kv") : facts.heads;
  if (facts.heads % facts.kv_heads != 0) corrupt(file, "llama.attention.head_count_kv does not divide llama.attention.head_count");
  if (file.has("llama.attention.key_length")) {
    facts.head_dim = size_of_key(file, "llama.attention.key_length");
  } else {
    if (facts.hidden % facts.heads != 0) corrupt(file, "llama.attention.head_count does not divide llama.embedding_length");
    facts.head_dim = facts.hidden / facts.heads;
  }
  if (facts.head_dim % 2 != 0) corrupt(file, "heads have an odd size, " + std::to_string(facts.head_dim));
  facts.rms_norm_eps = shortest(file.number("llama.attention.layer_norm_rms_epsilon"));
  const auto* embedding = find(file, "token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) corrupt(file, "tensor 'token_embd.weight' is missing or no matrix");
  facts.vocab = static_cast<std::int64_t>(embedding->shape[0]);
  facts.tied = find(file, "output.weight") == nullptr;
  facts.attention_bias = find(file, "blk.0.attn_q.bias") != nullptr;
  read_rope(file, facts);
  return facts;
}

std::vector<LlamaTensor> match_llama_tensors(const GgufFile& file, const LlamaFacts& f) {
  // A layer takes nine tensors, so a wrong count ends here and not after 2^31 rounds.
  if (static_cast<std::uint64_t>(f.layers) > file.header().tensors.size()) corrupt(file, "llama.block_count is " + std::to_string(f.layers) + ", the file has fewer tensors");
  Matcher matcher{file};
  const auto q = f.heads * f.head_dim, kv = f.kv_heads * f.head_dim;
  matcher.take("token_embd.weight", "model.embed_tokens.weight", {f.vocab, f.hidden});
  for (std::int64_t layer = 0; layer < f.layers; ++layer) {
    const auto from = "blk." + std::to_string(layer) + ".", to = "model.layers." + std::to_string(layer) + ".";
    const auto attention = [&](const char* source, const char* name, std::int64_t rows, std::int64_t columns, std::int64_t heads) {
      matcher.take(from + source + ".weight", to + "self_attn." + name + ".weight", {rows, columns}, heads);
      if (f.attention_bias) matcher.take(from + source + ".bias", to + "self_attn." + name + ".bias", {rows}, heads);
    };
    matcher.take(from + "attn_norm.weight", to + "input_layernorm.weight", {f.hidden});
    attention("attn_q", "q_proj", q, f.hidden, f.heads);
    attention("attn_k", "k_proj", kv, f.hidden, f.kv_heads);
    attention("attn_v", "v_proj", kv, f.hidden, 0);
    attention("attn_output", "o_proj", f.hidden, q, 0);
    matcher.take(from + "ffn_norm.weight", to + "post_attention_layernorm.weight", {f.hidden});
    matcher.take(from + "ffn_gate.weight", to + "mlp.gate_proj.weight", {f.intermediate, f.hidden});
    matcher.take(from + "ffn_up.weight", to + "mlp.up_proj.weight", {f.intermediate, f.hidden});
    matcher.take(from + "ffn_down.weight", to + "mlp.down_proj.weight", {f.hidden, f.intermediate});
  }
  matcher.take("output_norm.weight", "model.norm.weight", {f.hidden});
  if (!f.tied) matcher.take("output.weight", "lm_head.weight", {f.vocab, f.hidden});
  return matcher.done();
}

std::string llama_config_json(const GgufFile& file, const LlamaFacts& f, const std::string& dtype) {
  Json json{{"architectures", {"LlamaForCausalLM"}}, {"attention_bias", f.attention_bias}, {"attention_dropout", 0.0}};
  for (const auto& [key, source] : {std::pair{"bos_token_id", "tokenizer.ggml.bos_token_id"}, {"eos_token_id", "tokenizer.ggml.eos_token_id"},
                                    {"pad_token_id", "tokenizer.ggml.padding_token_id"}}) {
    if (file.has(source)) json[key] = file.integer(source);
  }
  json["head_dim"] = f.head_dim;
  json["hidden_act"] = "silu";
  json["hidden_size"] = f.hidden;
  json["initializer_range"] = 0.02;
  json["intermediate_size"] = f.intermediate;
  json["max_position_embeddings"] = f.context;
  json["mlp_bias"] = false;
  json["model_type"] = "llama";
  json["num_attention_heads"] = f.heads;
  json["num_hidden_layers"] = f.layers;
  json["num_key_value_heads"] = f.kv_heads;
  json["rms_norm_eps"] = Json::parse(f.rms_norm_eps);
  json["rope_scaling"] = f.rope_factor == 1 ? Json(nullptr) : Json{{"rope_type", "linear"}, {"type", "linear"}, {"factor", f.rope_factor}};
  json["rope_theta"] = f.rope_theta;
  json["tie_word_embeddings"] = f.tied;
  json["torch_dtype"] = dtype;
  json["use_cache"] = true;
  json["vocab_size"] = f.vocab;
  return json.dump(2) + "\n";
}

std::string llama_generation_json(const GgufFile& file) {
  Json json{{"_from_model_config", true}};
  for (const auto& [key, source] : {std::pair{"bos_token_id", "tokenizer.ggml.bos_token_id"}, {"eos_token_id", "tokenizer.ggml.eos_token_id"},
                                    {"pad_token_id", "tokenizer.ggml.padding_token_id"}}) {
    if (file.has(source)) json[key] = file.integer(source);
  }
  return json.dump(2) + "\n";
}

}  // namespace troupe::detail

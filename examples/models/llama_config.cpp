#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <troupe/errors.hpp>
#include <troupe/llama.hpp>

#include "json_fields.hpp"

namespace troupe {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using detail::read_bool;
using detail::read_number;

constexpr const char* rope_types[] = {"default", "linear", "dynamic", "yarn", "llama3"};

std::string text_in(const json& object, const char* key, const std::string& fallback) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : fallback;
}

/// yarn's: transformers divides the scales of two `mscale`s.
void read_mscale(const json& object, const std::string& where, RopeScaling& s) {
  double mscale = 0, all_dim = 0;
  read_number(object, "mscale", where, mscale);
  read_number(object, "mscale_all_dim", where, all_dim);
  if (s.attention_factor || mscale == 0 || all_dim == 0 || s.factor <= 1) return;
  s.attention_factor = (0.1 * mscale * std::log(s.factor) + 1) / (0.1 * all_dim * std::log(s.factor) + 1);
}

void read_rope(const json& object, const std::string& where, LlamaConfig& c) {
  auto& s = c.rope_scaling;
  s.rope_type = text_in(object, "rope_type", text_in(object, "type", "default"));
  if (std::ranges::find(rope_types, s.rope_type) == std::end(rope_types)) {
    throw Failure{Errc::Unsupported, where + ": rope type '" + s.rope_type + "' is none of default, linear, dynamic, yarn, llama3"};
  }
  read_number(object, "rope_theta", where, c.rope_theta);
  double partial = 1;
  read_number(object, "partial_rotary_factor", where, partial);
  bool truncate = true;
  read_bool(object, "truncate", where, truncate);
  if (partial != 1 || !truncate) throw Failure{Errc::Unsupported, where + ": partial_rotary_factor other than 1 and truncate = false are not built"};
  const bool scaled = s.rope_type != "default";
  if (scaled && !object.contains("factor")) throw Failure{Errc::InvalidConfig, where + ": rope type '" + s.rope_type + "' needs 'factor'"};
  if (!scaled) return;
  read_number(object, "factor", where, s.factor);
  read_number(object, "low_freq_factor", where, s.low_freq_factor);
  read_number(object, "high_freq_factor", where, s.high_freq_factor);
  read_number(object, "original_max_position_embeddings", where, s.original_max_position_embeddings);
  read_number(object, "beta_fast", where, s.beta_fast);
  read_number(object, "beta_slow", where, s.beta_slow);
  if (const auto found = object.find("attention_factor"); found != object.end() && !found->is_null()) {
    read_number(object, "attention_factor", where, s.attention_factor.emplace());
  }
  if (s.rope_type == "yarn") read_mscale(object, where, s);
}

nlohmann::ordered_json rope_json(const LlamaConfig& c) {
  const auto& s = c.rope_scaling;
  nlohmann::ordered_json out{{"rope_theta", c.rope_theta}, {"rope_type", s.rope_type}};
  if (s.rope_type == "default") return out;
  out["factor"] = s.factor;
  const auto original = s.original_max_position_embeddings ? s.original_max_position_embeddings : c.max_position_embeddings;
  if (s.rope_type == "llama3" || s.rope_type == "yarn") out["original_max_position_embeddings"] = original;
  if (s.rope_type == "llama3") {
    out["low_freq_factor"] = s.low_freq_factor;
    out["high_freq_factor"] = s.high_freq_factor;
  }
  if (s.rope_type == "yarn") {
    out["beta_fast"] = s.beta_fast;
    out["beta_slow"] = s.beta_slow;
    if (s.attention_factor) out["attention_factor"] = *s.attention_factor;
  }
  return out;
}

DType dtype_from(const std::string& text, const std::string& where) {
  const auto plain = text.starts_with("torch.") ? text.substr(6) : text;
  if (plain == "float32") return DType::F32;
  if (plain == "bfloat16") return DType::BF16;
  if (plain == "float16") return DType::F16;
  if (plain == "float64") return DType::F64;
  throw Failure{Errc::Unsupported, where + ": dtype '" + text + "' is none of float32, bfloat16, float16, float64"};
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::BF16: return "bfloat16";
    case DType::F16: return "float16";
    case DType::F64: return "float64";
    default: return "float32";
  }
}

void read_token(const json& object, const char* key, const std::string& where, std::optional<std::int64_t>& out) {
  const auto found = object.find(key);
  if (found == object.end()) return;
  out.reset();
  if (found->is_null()) return;
  read_number(object, key, where, out.emplace());
  if (*out < 0) out.reset();  // old files say -1 for none
}

void check_sizes(const LlamaConfig& c, const std::string& where) {
  const std::pair<const char*, std::int64_t> sizes[] = {{"vocab_size", c.vocab_size},
                                                        {"hidden_size", c.hidden_size},
                                                        {"intermediate_size", c.intermediate_size},
                                                        {"num_hidden_layers", c.num_hidden_layers},
                                                        {"num_attention_heads", c.num_attention_heads},
                                                        {"num_key_value_heads", c.kv_heads()},
                                                        {"max_position_embeddings", c.max_position_embeddings}};
  for (const auto& [key, value] : sizes) {
    if (value < 1 || value > (std::int64_t{1} << 31)) throw Failure{Errc::InvalidConfig, where + ": " + key + " = " + std::to_string(value) + " makes no model"};
  }
}

}  // namespace

void LlamaConfig::check(const std::string& where) const {
  const auto refuse = [&](const std::string& text) { throw Failure{Errc::InvalidConfig, where + ": " + text}; };
  check_sizes(*this, where);
  if (num_attention_heads % kv_heads() != 0) {
    refuse("num_attention_heads " + std::to_string(num_attention_heads) + " is no multiple of num_key_value_heads " + std::to_string(kv_heads()));
  }
  if (head_dim == 0 && hidden_size % num_attention_heads != 0) {
    refuse("hidden_size " + std::to_string(hidden_size) + " is no multiple of num_attention_heads " + std::to_string(num_attention_heads));
  }
  if (head_size() < 2 || head_size() % 2 != 0) refuse("head_dim " + std::to_string(head_size()) + " is not even, as rotary positions need it");
  if (!(attention_dropout >= 0 && attention_dropout < 1)) refuse("attention_dropout = " + std::to_string(attention_dropout) + " should be in [0, 1)");
  if (!(rope_theta > 1)) refuse("rope_theta = " + std::to_string(rope_theta) + " should be more than 1");
  if (!(rope_scaling.factor >= 1)) refuse("rope scaling's factor = " + std::to_string(rope_scaling.factor) + " should be 1 or more");
  if (!(rms_norm_eps >= 0)) refuse("rms_norm_eps = " + std::to_string(rms_norm_eps) + " should be 0 or more");
  if (pad_token_id && *pad_token_id >= vocab_size) refuse("pad_token_id is outside the vocabulary");
  if (std::ranges::find(rope_types, rope_scaling.rope_type) == std::end(rope_types)) {
    throw Failure{Errc::Unsupported, where + ": rope type '" + rope_scaling.rope_type + "' is none of default, linear, dynamic, yarn, llama3"};
  }
}

std::int64_t LlamaConfig::num_parameters() const {
  const auto q = num_attention_heads * head_size(), kv = kv_heads() * head_size();
  auto layer = hidden_size * (2 * q + 2 * kv) + 3 * hidden_size * intermediate_size + 2 * hidden_size;
  if (attention_bias) layer += q + 2 * kv + hidden_size;
  if (mlp_bias) layer += 2 * intermediate_size + hidden_size;
  return num_hidden_layers * layer + hidden_size + (tie_word_embeddings ? 1 : 2) * vocab_size * hidden_size;
}

double LlamaConfig::flops_per_token(std::int64_t tokens, bool frozen_base) const {
  const auto embedding = static_cast<double>(vocab_size * hidden_size);
  const auto matrices = static_cast<double>(num_parameters()) - (tie_word_embeddings ? 0 : embedding);  // the embedding is looked up
  const auto attention = 12.0 * static_cast<double>(num_hidden_layers * num_attention_heads * head_size() * tokens);
  return (frozen_base ? 4 : 6) * matrices + attention;
}

LlamaConfig LlamaConfig::from_file(const fs::path& file) {
  const auto object = detail::read_json_object(file);
  const auto where = file.string();
  const auto type = object.value("model_type", json("llama"));
  if (type != "llama") throw Failure{Errc::InvalidConfig, where + ": model_type is " + type.dump() + ", not \"llama\""};
  if (const auto act = text_in(object, "hidden_act", "silu"); act != "silu") {
    throw Failure{Errc::Unsupported, where + ": hidden_act '" + act + "' is not built, only silu"};
  }
  LlamaConfig c;
  const std::pair<const char*, std::int64_t*> numbers[] = {{"vocab_size", &c.vocab_size},
                                                           {"hidden_size", &c.hidden_size},
                                                           {"intermediate_size", &c.intermediate_size},
                                                           {"num_hidden_layers", &c.num_hidden_layers},
                                                           {"num_attention_heads", &c.num_attention_heads},
                                                           {"num_key_value_heads", &c.num_key_value_heads},
                                                           {"head_dim", &c.head_dim},
                                                           {"max_position_embeddings", &c.max_position_embeddings}};
  for (const auto& [key, to] : numbers) read_number(object, key, where, *to);
  read_number(object, "rms_norm_eps", where, c.rms_norm_eps);
  read_number(object, "initializer_range", where, c.initializer_range);
  read_number(object, "attention_dropout", where, c.attention_dropout);
  read_bool(object, "tie_word_embeddings", where, c.tie_word_embeddings);
  read_bool(object, "attention_bias", where, c.attention_bias);
  read_bool(object, "mlp_bias", where, c.mlp_bias);
  read_number(object, "rope_theta", where, c.rope_theta);
  for (const auto* const key : {"rope_scaling", "rope_parameters"}) {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) continue;
    if (!found->is_object()) throw Failure{Errc::InvalidConfig, where + ": '" + key + "' should be an object, not " + found->dump()};
    read_rope(*found, where + ": " + key, c);
  }
  read_token(object, "bos_token_id", where, c.bos_token_id);
  read_token(object, "pad_token_id", where, c.pad_token_id);
  if (object.contains("eos_token_id")) c.eos_token_ids = detail::read_tokens(object, "eos_token_id", where);
  c.dtype = dtype_from(text_in(object, "dtype", text_in(object, "torch_dtype", "float32")), where);
  c.check(where);
  return c;
}

void LlamaConfig::save(const fs::path& file) const {
  nlohmann::ordered_json out{{"architectures", {"LlamaForCausalLM"}},
                             {"model_type", "llama"},
                             {"vocab_size", vocab_size},
                             {"hidden_size", hidden_size},
                             {"intermediate_size", intermediate_size},
                             {"num_hidden_layers", num_hidden_layers},
                             {"num_attention_heads", num_attention_heads},
                             {"num_key_value_heads", kv_heads()},
                             {"head_dim", head_size()},
                             {"hidden_act", "silu"},
                             {"max_position_embeddings", max_position_embeddings},
                             {"initializer_range", initializer_range},
                             {"rms_norm_eps", rms_norm_eps},
                             {"rope_parameters", rope_json(*this)},
                             {"rope_theta", rope_theta},  // this and the next for transformers 4
                             {"torch_dtype", dtype_name(dtype)},
                             {"dtype", dtype_name(dtype)},
                             {"tie_word_embeddings", tie_word_embeddings},
                             {"attention_bias", attention_bias},
                             {"attention_dropout", attention_dropout},
                             {"mlp_bias", mlp_bias},
                             {"use_cache", true}};
  if (rope_scaling.rope_type != "default") {
    out["rope_scaling"] = rope_json(*this);
    out["rope_scaling"].erase("rope_theta");
  }
  if (bos_token_id) out["bos_token_id"] = *bos_token_id;
  if (pad_token_id) out["pad_token_id"] = *pad_token_id;
  if (eos_token_ids.size() == 1) out["eos_token_id"] = eos_token_ids.front();
  else if (!eos_token_ids.empty()) out["eos_token_id"] = eos_token_ids;
  detail::write_json(file, out);
}

}  // namespace troupe

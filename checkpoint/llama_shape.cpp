#include <troupe/errors.hpp>
#include <troupe/llama_shape.hpp>

#include <fstream>
#include <nlohmann/json.hpp>

namespace troupe {

std::optional<LlamaShape> read_llama_shape(const std::filesystem::path& model) {
  const auto file = std::filesystem::is_directory(model) ? model / "config.json" : model;
  if (!std::filesystem::is_regular_file(file) || file.extension() != ".json") return std::nullopt;
  std::ifstream in{file, std::ios::binary};
  const auto json = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw Failure{Errc::FileCorrupt, file.string() + ": is no JSON object"};
  if (json.value("model_type", nlohmann::json{}) != "llama") return std::nullopt;
  const auto number = [&](const char* key, std::int64_t fallback) {
    const auto found = json.find(key);
    const auto value = found != json.end() && found->is_number_integer() ? found->get<std::int64_t>() : fallback;
    if (value < 1 || value > std::int64_t{1} << 31) throw Failure{Errc::InvalidConfig, file.string() + ": " + key + " is missing or no size"};
    return value;
  };
  LlamaShape shape;
  shape.layers = number("num_hidden_layers", 0);
  shape.hidden = number("hidden_size", 0);
  shape.intermediate = number("intermediate_size", 0);
  shape.heads = number("num_attention_heads", 0);
  shape.kv_heads = number("num_key_value_heads", shape.heads);
  shape.head_dim = number("head_dim", shape.hidden / shape.heads);
  shape.vocab = number("vocab_size", 0);
  const auto tied = json.find("tie_word_embeddings");
  shape.tied = tied != json.end() && tied->is_boolean() && tied->get<bool>();
  return shape;
}

}  // namespace troupe

#include "llama_layout.hpp"

#include <troupe/errors.hpp>

#include <array>
#include <bit>
#include <nlohmann/json.hpp>

namespace troupe::detail {

namespace {

using Json = nlohmann::ordered_json;

enum TokenType : std::int64_t { normal = 1, control = 3, user_defined = 4 };  // also sentencepiece's numbers

std::string quoted(const GgufFile& file, const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Failure{Errc::FileCorrupt, file.path().string() + ": a token or merge is not UTF-8"};
  }
}

/// How text is split before merging, by llama.cpp's name; and whether whole words come before merges.
struct Split {
  Json pre_tokenizer;
  bool ignore_merges = false;
};

Json byte_level(bool use_regex) { return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}}; }

Split split_of(const GgufFile& file) {
  const auto& name = file.text("tokenizer.ggml.pre");
  const auto sequence = [](Json first, Json second) { return Json{{"type", "Sequence"}, {"pretokenizers", Json::array({std::move(first), std::move(second)})}}; };
  if (name == "smollm") return {sequence({{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)), false};
  if (name == "gpt-2") return {byte_level(true), false};
  if (name == "llama-bpe" || name == "llama3") {
    const auto* words = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    return {sequence({{"type", "Split"}, {"pattern", {{"Regex", words}}}, {"behavior", "Isolated"}, {"invert", false}}, byte_level(false)), true};
  }
  throw Failure{Errc::Unsupported, file.path().string() + ": tokenizer.ggml.pre is '" + name +
                                       "'; smollm, gpt-2, llama-bpe and llama3 are converted (--no-tokenizer leaves the tokenizer out)"};
}

std::pair<std::string, std::string> halves(const GgufFile& file, const std::string& merge) {
  const auto space = merge.find(' ', 1);  // a half is not empty
  if (space == std::string::npos || space + 1 == merge.size())
    throw Failure{Errc::FileCorrupt, file.path().string() + ": tokenizer.ggml.merges has '" + merge + "', which is no pair"};
  return {merge.substr(0, space), merge.substr(space + 1)};
}

// By hand: an ordered JSON object looks for each key among all before it.
std::string vocab_json(const GgufFile& file) {
  const auto& tokens = file.texts("tokenizer.ggml.tokens");
  std::string text = "{";
  for (std::size_t i = 0; i < tokens.size(); ++i) text += (i ? "," : "") + quoted(file, tokens[i]) + ":" + std::to_string(i);
  return text + "}";
}

std::string bpe_json(const GgufFile& file) {
  const auto& tokens = file.texts("tokenizer.ggml.tokens");
  const auto& types = file.integers("tokenizer.ggml.token_type");
  std::string added;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] != control && types[i] != user_defined) continue;
    added += (added.empty() ? "" : ",") + std::string(R"({"id":)") + std::to_string(i) + R"(,"content":)" + quoted(file, tokens[i]) +
             R"(,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":)" + (types[i] == control ? "true}" : "false}");
  }
  std::string merges;
  for (const auto& merge : file.texts("tokenizer.ggml.merges")) {
    const auto [left, right] = halves(file, merge);
    merges += (merges.empty() ? "[" : ",[") + quoted(file, left) + "," + quoted(file, right) + "]";
  }
  const auto split = split_of(file);
  const auto decoder = Json{{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)" + added + R"(],"normalizer":null,"pre_tokenizer":)" + split.pre_tokenizer.dump() +
         R"(,"post_processor":null,"decoder":)" + decoder.dump() +
         R"(,"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":)" +
         (split.ignore_merges ? "true" : "false") + R"(,"vocab":)" + vocab_json(file) + R"(,"merges":[)" + merges + "]}}\n";
}

std::string merges_text(const GgufFile& file) {
  std::string text = "#version: 0.2\n";
  for (const auto& merge : file.texts("tokenizer.ggml.merges")) text += merge + "\n";
  return text;
}

/// Bytes of protocol buffers, as far as sentencepiece's ModelProto needs them.
struct Message {
  std::string bytes;
  void varint(std::uint64_t value) {
    for (; value >= 128; value >>= 7) bytes += static_cast<char>(value | 128);
    bytes += static_cast<char>(value);
  }
  void number(unsigned field, std::int64_t value) { varint(field << 3), varint(static_cast<std::uint64_t>(value)); }
  void text(unsigned field, std::string_view value) { varint(field << 3 | 2), varint(value.size()), bytes += value; }
  void real(unsigned field, float value) {
    varint(field << 3 | 5);
    const auto bits = std::bit_cast<std::uint32_t>(value);
    for (unsigned i = 0; i < 4; ++i) bytes += static_cast<char>(bits >> 8 * i & 255);
  }
};

/// sentencepiece_model.proto: pieces, then how it was trained and how it normalises.
std::string sentencepiece_model(const GgufFile& file) {
  const auto& tokens = file.texts("tokenizer.ggml.tokens");
  const auto& types = file.integers("tokenizer.ggml.token_type");
  const auto& scores = file.numbers("tokenizer.ggml.scores");
  if (scores.size() != tokens.size()) throw Failure{Errc::FileCorrupt, file.path().string() + ": tokenizer.ggml.scores and tokens differ in length"};
  Message model, trainer, normalizer;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    Message piece;
    piece.text(1, tokens[i]);
    piece.real(2, static_cast<float>(scores[i]));
    piece.number(3, types[i]);
    model.text(1, piece.bytes);
  }
  trainer.number(3, 2);  // BPE
  trainer.number(4, static_cast<std::int64_t>(tokens.size()));
  trainer.number(35, 1);  // byte_fallback
  constexpr std::array<const char*, 4> keys{"tokenizer.ggml.unknown_token_id", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                                            "tokenizer.ggml.padding_token_id"};
  std::array<std::int64_t, 4> ids{};
  for (unsigned i = 0; i < 4; ++i) {
    ids[i] = file.has(keys[i]) ? file.integer(keys[i]) : -1;
    if (ids[i] < -1 || ids[i] >= static_cast<std::int64_t>(tokens.size()))
      throw Failure{Errc::FileCorrupt, file.path().string() + ": metadata '" + keys[i] + "' is " + std::to_string(ids[i]) + ", which is no token"};
    trainer.number(40 + i, ids[i]);
  }
  for (unsigned i = 0; i < 4; ++i) {
    if (ids[i] >= 0) trainer.text(45 + i, tokens[static_cast<std::size_t>(ids[i])]);
  }
  normalizer.text(1, "identity");
  normalizer.number(3, file.has("tokenizer.ggml.add_space_prefix") ? file.flag("tokenizer.ggml.add_space_prefix") : 1);
  normalizer.number(4, 0);  // extra spaces stay
  normalizer.number(5, 1);  // spaces are U+2581
  model.text(2, trainer.bytes);
  model.text(3, normalizer.bytes);
  return model.bytes;
}

std::string tokenizer_config(const GgufFile& file, const LlamaFacts& facts, const char* tokenizer_class) {
  const auto& tokens = file.texts("tokenizer.ggml.tokens");
  Json json{{"tokenizer_class", tokenizer_class}};
  for (const auto& [key, source] : {std::pair{"bos_token", "tokenizer.ggml.bos_token_id"}, {"eos_token", "tokenizer.ggml.eos_token_id"},
                                    {"unk_token", "tokenizer.ggml.unknown_token_id"}, {"pad_token", "tokenizer.ggml.padding_token_id"}}) {
    if (!file.has(source)) continue;
    const auto id = file.integer(source);
    if (id < 0 || id >= static_cast<std::int64_t>(tokens.size()))
      throw Failure{Errc::FileCorrupt, file.path().string() + ": metadata '" + source + "' is " + std::to_string(id) + ", which is no token"};
    json[key] = tokens[static_cast<std::size_t>(id)];
  }
  for (const auto& [key, source] : {std::pair{"add_bos_token", "tokenizer.ggml.add_bos_token"}, {"add_eos_token", "tokenizer.ggml.add_eos_token"}}) {
    if (file.has(source)) json[key] = file.flag(source);
  }
  json["clean_up_tokenization_spaces"] = false;
  json["model_max_length"] = facts.context;
  if (file.has("tokenizer.chat_template")) json["chat_template"] = file.text("tokenizer.chat_template");
  try {
    return json.dump(2) + "\n";
  } catch (const nlohmann::json::exception&) {
    throw Failure{Errc::FileCorrupt, file.path().string() + ": tokenizer.chat_template is not UTF-8"};
  }
}

}  // namespace

std::map<std::string, std::string> tokenizer_files(const GgufFile& file, const LlamaFacts& facts) {
  const auto& tokens = file.texts("tokenizer.ggml.tokens");
  const auto& model = file.text("tokenizer.ggml.model");
  if (static_cast<std::int64_t>(tokens.size()) != facts.vocab)
    throw Failure{Errc::FileCorrupt, file.path().string() + ": the tokenizer has " + std::to_string(tokens.size()) + " tokens, the embedding " + std::to_string(facts.vocab) + " rows"};
  if (file.integers("tokenizer.ggml.token_type").size() != tokens.size())
    throw Failure{Errc::FileCorrupt, file.path().string() + ": tokenizer.ggml.token_type and tokens differ in length"};
  if (model == "llama") return {{"tokenizer.model", sentencepiece_model(file)}, {"tokenizer_config.json", tokenizer_config(file, facts, "LlamaTokenizer")}};
  if (model != "gpt2")
    throw Failure{Errc::Unsupported, file.path().string() + ": tokenizer.ggml.model is '" + model +
                                         "'; gpt2 (byte-level BPE) and llama (SentencePiece) are converted (--no-tokenizer leaves the tokenizer out)"};
  return {{"tokenizer.json", bpe_json(file)}, {"vocab.json", vocab_json(file) + "\n"}, {"merges.txt", merges_text(file)},
          {"tokenizer_config.json", tokenizer_config(file, facts, "PreTrainedTokenizerFast")}};
}

}  // namespace troupe::detail

// Files of before tokenizer.json, as the tokenizer.json that transformers makes of them.
#include <algorithm>
#include <sstream>
#include <troupe/errors.hpp>

#include "json_section.hpp"
#include "json_tokenizer.hpp"

namespace troupe::detail {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<std::string> lines_of(const fs::path& file) {
  std::istringstream in{read_tokenizer_file(file)};
  std::vector<std::string> out;
  for (std::string line; std::getline(in, line);) {
    if (line.ends_with('\r')) line.pop_back();
    out.push_back(std::move(line));
  }
  return out;
}

json special(const std::string& token, std::int64_t id) {
  return {{"id", token}, {"ids", json::array({id})}, {"tokens", json::array({token})}};
}
json item(const std::string& token, int type) {
  return {{"SpecialToken", {{"id", token}, {"type_id", type}}}};
}
json text_item(const char* id, int type) { return {{"Sequence", {{"id", id}, {"type_id", type}}}}; }

}  // namespace

std::string json_of_vocab_txt(const fs::path& vocab, const PretrainedConfig& config) {
  json words = json::object();
  std::int64_t next = 0;
  const auto lines = lines_of(vocab);
  for (const auto& line : lines) words[line] = next++;  // of two equal lines the later one counts
  const auto id_of = [&](const std::string& token) {
    const auto found = std::ranges::find(lines, token);
    if (found == lines.end())
      throw Failure{Errc::FileCorrupt,
                    vocab.string() + ": lacks the special token '" + token + "'"};
    return words[token].get<std::int64_t>();
  };
  const auto cls = config.tokens.cls.value_or("[CLS]"), sep = config.tokens.sep.value_or("[SEP]"),
             unk = config.tokens.unk.value_or("[UNK]");
  json added = json::array();
  for (const auto& token : {config.tokens.pad.value_or("[PAD]"), unk, cls, sep,
                            config.tokens.mask.value_or("[MASK]")}) {
    if (std::ranges::find(lines, token) == lines.end()) continue;
    added.push_back(
        {{"id", id_of(token)}, {"content", token}, {"normalized", false}, {"special", true}});
  }
  json out{
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer",
       {{"type", "BertNormalizer"},
        {"clean_text", true},
        {"handle_chinese_chars", config.tokenize_chinese_chars.value_or(true)},
        {"strip_accents", config.strip_accents ? json(*config.strip_accents) : json()},
        {"lowercase", config.do_lower_case.value_or(true)}}},
      {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", json::array({item(cls, 0), text_item("A", 0), item(sep, 0)})},
        {"pair", json::array({item(cls, 0), text_item("A", 0), item(sep, 0), text_item("B", 1),
                              item(sep, 1)})},
        {"special_tokens", {{cls, special(cls, id_of(cls))}, {sep, special(sep, id_of(sep))}}}}},
      {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}},
      {"model",
       {{"type", "WordPiece"},
        {"unk_token", unk},
        {"continuing_subword_prefix", "##"},
        {"max_input_chars_per_word", 100},
        {"vocab", words}}}};
  return out.dump();
}

std::string json_of_vocab_and_merges(const fs::path& vocab, const fs::path& merges,
                                     const PretrainedConfig& config) {
  const auto& name = config.tokenizer_class;
  const bool roberta = name.starts_with("Roberta");
  if (!name.empty() && !roberta && !name.starts_with("GPT2"))
    throw Failure{Errc::Unsupported, config.file + ": tokenizer_class '" + name +
                                         "' with vocab.json and merges.txt is not supported "
                                         "(GPT2Tokenizer and RobertaTokenizer are); "
                                         "save it with transformers as tokenizer.json"};
  const auto words = json::parse(read_tokenizer_file(vocab), nullptr, false);
  if (!words.is_object())
    throw Failure{Errc::FileCorrupt, vocab.string() + ": holds no JSON object"};
  json pairs = json::array();
  for (auto& line : lines_of(merges)) {
    if (line.starts_with("#version") || line.empty()) continue;
    pairs.push_back(std::move(line));
  }
  const bool prefix = config.add_prefix_space.value_or(false);
  json out{
      {"version", "1.0"},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"use_regex", true}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", words}, {"merges", pairs}}}};
  if (roberta) {
    const auto named = [&](const std::optional<std::string>& token, const char* otherwise) {
      const auto text = token.value_or(otherwise);
      if (!words.contains(text))
        throw Failure{Errc::FileCorrupt,
                      vocab.string() + ": lacks the special token '" + text + "'"};
      return json::array({text, words[text]});
    };
    out["post_processor"] = {{"type", "RobertaProcessing"},
                             {"sep", named(config.tokens.sep, "</s>")},
                             {"cls", named(config.tokens.cls, "<s>")}};
  }
  return out.dump();
}

}  // namespace troupe::detail

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <troupe/errors.hpp>
#include <troupe/wordpiece.hpp>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uintmax_t kMaxFileBytes = 100'000'000;

[[noreturn]] void refuse(const fs::path& file, const std::string& text) {
  throw Failure{Errc::FileCorrupt, file.string() + ": " + text};
}

/// The object in a JSON file; an empty one when there is no such file.
json read_object(const fs::path& file) {
  std::ifstream in{file, std::ios::binary};
  if (!in) return json::object();
  if (fs::file_size(file) > kMaxFileBytes) refuse(file, "is larger than 100 MB");
  auto out = json::parse(in, nullptr, false);
  if (!out.is_object()) refuse(file, "is no JSON object");
  return out;
}

std::vector<std::string> read_vocab_txt(const fs::path& file) {
  if (fs::file_size(file) > kMaxFileBytes) refuse(file, "is larger than 100 MB");
  std::ifstream in{file, std::ios::binary};
  std::vector<std::string> out;
  for (std::string line; std::getline(in, line);) {
    if (line.ends_with('\r')) line.pop_back();
    out.push_back(std::move(line));
  }
  if (in.bad()) throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be read"};
  return out;
}

/// The vocabulary and the cleaning of a tokenizer.json, which newer transformers write instead of
/// vocab.txt.
std::vector<std::string> read_tokenizer_json(const fs::path& file, WordPieceOptions& options) {
  const auto whole = read_object(file);
  const auto model = whole.value("model", json::object());
  if (!model.is_object() || model.value("type", json()) != "WordPiece" ||
      !model.contains("vocab") || !model["vocab"].is_object()) {
    refuse(file, "holds no WordPiece vocabulary");
  }
  std::vector<std::string> out(model["vocab"].size());
  for (const auto& [token, id] : model["vocab"].items()) {
    if (!id.is_number_unsigned() || id.get<std::size_t>() >= out.size())
      refuse(file, "token '" + token + "' has the id " + id.dump());
    out[id.get<std::size_t>()] = token;
  }
  const auto normalizer = whole.value("normalizer", json());
  if (normalizer.is_object()) {
    if (const auto& v = normalizer.value("lowercase", json()); v.is_boolean())
      options.do_lower_case = v.get<bool>();
    if (const auto& v = normalizer.value("strip_accents", json()); v.is_boolean())
      options.strip_accents = v.get<bool>();
    if (const auto& v = normalizer.value("handle_chinese_chars", json()); v.is_boolean())
      options.tokenize_chinese_chars = v.get<bool>();
  }
  return out;
}

void read_flag(const json& object, const char* key, const fs::path& file,
               const std::function<void(bool)>& use) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  if (!found->is_boolean())
    refuse(file, std::string("'") + key + "' should be true or false, not " + found->dump());
  use(found->get<bool>());
}

/// A special token is a string, or an object whose "content" is one.
void read_token(const json& object, const char* key, const fs::path& file, std::string& out) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  const auto& token = found->is_object() ? found->value("content", json()) : *found;
  if (!token.is_string())
    refuse(file, std::string("'") + key + "' should be a string, not " + found->dump());
  out = token.get<std::string>();
}

void read_options(const fs::path& file, WordPieceOptions& options) {
  const auto object = read_object(file);
  read_flag(object, "do_lower_case", file, [&](bool v) { options.do_lower_case = v; });
  read_flag(object, "strip_accents", file, [&](bool v) { options.strip_accents = v; });
  read_flag(object, "tokenize_chinese_chars", file,
            [&](bool v) { options.tokenize_chinese_chars = v; });
  read_token(object, "unk_token", file, options.unk_token);
  read_token(object, "sep_token", file, options.sep_token);
  read_token(object, "pad_token", file, options.pad_token);
  read_token(object, "cls_token", file, options.cls_token);
  read_token(object, "mask_token", file, options.mask_token);
}

void write_text(const fs::path& file, const std::string& text) {
  std::ofstream out{file, std::ios::binary};
  if (!(out << text).flush())
    throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be written"};
}

}  // namespace

WordPiece WordPiece::from_pretrained(const fs::path& directory) {
  const auto vocab = directory / "vocab.txt";
  const auto tokenizer = directory / "tokenizer.json";
  WordPieceOptions options;
  std::vector<std::string> words;
  fs::path source = vocab;
  if (fs::exists(vocab)) {
    words = read_vocab_txt(vocab);
  } else if (fs::exists(tokenizer)) {
    source = tokenizer;
    words = read_tokenizer_json(tokenizer, options);
  } else {
    throw Failure{Errc::FileNotFound,
                  directory.string() + ": has neither vocab.txt nor tokenizer.json"};
  }
  read_options(directory / "special_tokens_map.json", options);
  read_options(directory / "tokenizer_config.json", options);
  try {
    return WordPiece{std::move(words), std::move(options)};
  } catch (const Failure& failure) {
    refuse(source, failure.what());
  }
}

void WordPiece::save(const fs::path& directory) const {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error)
    throw Failure{Errc::StorageUnavailable,
                  directory.string() + ": cannot be made: " + error.message()};
  std::string words;
  for (std::size_t i = 0; i < vocab_size(); ++i)
    words += token(static_cast<std::int64_t>(i)) + '\n';
  write_text(directory / "vocab.txt", words);
  const auto& o = options();
  nlohmann::ordered_json special{{"unk_token", o.unk_token},
                                 {"sep_token", o.sep_token},
                                 {"pad_token", o.pad_token},
                                 {"cls_token", o.cls_token},
                                 {"mask_token", o.mask_token}};
  write_text(directory / "special_tokens_map.json", special.dump(2) + '\n');
  nlohmann::ordered_json config{
      {"tokenizer_class", "BertTokenizer"},
      {"do_lower_case", o.do_lower_case},
      {"strip_accents", o.strip_accents ? json(*o.strip_accents) : json()},
      {"tokenize_chinese_chars", o.tokenize_chinese_chars}};
  config.update(special);
  write_text(directory / "tokenizer_config.json", config.dump(2) + '\n');
}

}  // namespace troupe

#include "pretrained_config.hpp"

#include <algorithm>
#include <troupe/errors.hpp>

#include "json_section.hpp"

namespace troupe::detail {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::pair<const char*, std::optional<std::string> SpecialTokens::*> kRoles[] = {
    {"bos_token", &SpecialTokens::bos},  {"eos_token", &SpecialTokens::eos},
    {"unk_token", &SpecialTokens::unk},  {"sep_token", &SpecialTokens::sep},
    {"pad_token", &SpecialTokens::pad},  {"cls_token", &SpecialTokens::cls},
    {"mask_token", &SpecialTokens::mask}};

json read_object(const fs::path& file) {
  return fs::exists(file) ? parse_json_object(read_tokenizer_file(file), file.string())
                          : json::object();
}

/// A token is a string, or an object whose "content" is one.
std::string token_text(JsonSection& section, const char* key, const json& value) {
  const auto& text = value.is_object() ? value.value("content", json()) : value;
  if (!text.is_string())
    section.corrupt(key, "should be a token, not " +
                             value.dump(-1, ' ', false, json::error_handler_t::replace));
  return text.get<std::string>();
}

std::optional<bool> flag(JsonSection& section, const char* key) {
  return section.has(key) ? std::optional{section.boolean(key, false)} : std::nullopt;
}

void read_roles(JsonSection& section, SpecialTokens& tokens) {
  for (const auto& [key, member] : kRoles) {
    if (section.has(key)) tokens.*member = token_text(section, key, section.value(key));
  }
  for (const auto* key : {"additional_special_tokens", "extra_special_tokens"}) {
    if (!section.has(key)) continue;
    const auto& list = section.value(key);
    if (!list.is_array() && !list.is_object()) section.corrupt(key, "should be a list of tokens");
    for (const auto& item : list) {
      auto text = token_text(section, key, item);
      if (std::ranges::find(tokens.additional, text) == tokens.additional.end())
        tokens.additional.push_back(std::move(text));
    }
  }
}

void add_added(PretrainedConfig& config, AddedToken token) {
  const auto same = [&](const AddedToken& t) { return t.id == token.id; };
  const auto found = std::ranges::find_if(config.added, same);
  if (found == config.added.end()) config.added.push_back(std::move(token));
}

void read_added_decoder(JsonSection& section, PretrainedConfig& config) {
  if (!section.has("added_tokens_decoder")) return;
  auto decoder = section.section("added_tokens_decoder");
  for (const auto& item : section.value("added_tokens_decoder").items()) {
    const auto& key = item.key();
    const bool digits = !key.empty() && key.size() < 9 &&
                        std::ranges::all_of(key, [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) decoder.corrupt(key.c_str(), "should be a token's id");
    auto entry = decoder.section(key.c_str());
    AddedToken token{entry.string("content"), std::stoi(key)};
    token.single_word = entry.boolean("single_word", false);
    token.lstrip = entry.boolean("lstrip", false);
    token.rstrip = entry.boolean("rstrip", false);
    token.special = entry.boolean("special", false);
    token.normalized = entry.boolean("normalized", !token.special);
    add_added(config, std::move(token));
  }
}

/// {"<pad>": 32000}
void read_added_tokens_json(const fs::path& file, PretrainedConfig& config) {
  const auto object = read_object(file);
  for (const auto& item : object.items()) {
    const auto& id = item.value();
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
        id.get<std::int64_t>() > 100'000'000)
      throw Failure{Errc::FileCorrupt,
                    file.string() + ": '" + item.key() + "' has the id " + id.dump()};
    add_added(config, {item.key(), id.get<std::int32_t>(), false, false, false, true, false});
  }
  std::ranges::sort(config.added, {}, &AddedToken::id);
}

void read_chat_template(JsonSection& section, const fs::path& directory, PretrainedConfig& config) {
  const auto jinja = directory / "chat_template.jinja";
  if (fs::exists(jinja)) {
    config.chat_template = read_tokenizer_file(jinja);
  } else if (section.has("chat_template")) {
    const auto& value = section.value("chat_template");
    if (value.is_string()) {
      config.chat_template = value.get<std::string>();
    } else if (value.is_array()) {  // named ones; the default counts
      for (auto& named : section.sections("chat_template")) {
        if (named.string("name") == "default") config.chat_template = named.string("template");
      }
    } else {
      section.corrupt("chat_template", "should be a text");
    }
  }
}

std::optional<std::size_t> read_max_length(JsonSection& section) {
  if (!section.has("model_max_length")) return std::nullopt;
  const auto& value = section.value("model_max_length");
  if (!value.is_number()) section.corrupt("model_max_length", "should be a number");
  const auto number = value.get<double>();  // 1e30 stands for none
  return number >= 1 && number < 1e9 ? std::optional{static_cast<std::size_t>(number)}
                                     : std::nullopt;
}

}  // namespace

PretrainedConfig read_pretrained_config(const fs::path& directory) {
  PretrainedConfig out;
  const auto file = directory / "tokenizer_config.json";
  out.file = file.string();
  const auto map = read_object(directory / "special_tokens_map.json");
  JsonSection special{map, (directory / "special_tokens_map.json").string(), ""};
  read_roles(special, out.tokens);
  if (fs::exists(file))
    out.json = nlohmann::ordered_json::parse(read_tokenizer_file(file), nullptr, false);
  const auto object = read_object(file);
  JsonSection section{object, out.file, ""};
  read_roles(section, out.tokens);
  read_added_decoder(section, out);
  read_added_tokens_json(directory / "added_tokens.json", out);
  read_chat_template(section, directory, out);
  out.tokenizer_class = section.string_or_none("tokenizer_class").value_or("");
  out.model_max_length = read_max_length(section);
  out.add_bos = flag(section, "add_bos_token");
  out.add_eos = flag(section, "add_eos_token");
  out.add_prefix_space = flag(section, "add_prefix_space");
  out.legacy = flag(section, "legacy");
  out.do_lower_case = flag(section, "do_lower_case");
  out.strip_accents = flag(section, "strip_accents");
  out.tokenize_chinese_chars = flag(section, "tokenize_chinese_chars");
  out.truncate_left = section.string_or_none("truncation_side").value_or("right") == "left";
  out.clean_up_spaces = section.boolean("clean_up_tokenization_spaces", false);
  if (section.boolean("split_special_tokens", false))
    section.unsupported("split_special_tokens", "is not supported");
  return out;
}

void save_pretrained_config(const PretrainedConfig& config,
                            const std::map<std::int32_t, AddedToken>& added,
                            const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error)
    throw Failure{Errc::StorageUnavailable,
                  directory.string() + ": cannot be made: " + error.message()};
  auto out = config.json;
  for (const auto& [key, member] : kRoles) {
    if (config.tokens.*member) out[key] = *(config.tokens.*member);
  }
  out.erase("extra_special_tokens");
  out.erase("additional_special_tokens");
  if (!config.tokens.additional.empty())
    out["additional_special_tokens"] = config.tokens.additional;
  auto& decoder = out["added_tokens_decoder"] = nlohmann::ordered_json::object();
  for (const auto& [id, token] : added) {
    decoder[std::to_string(id)] = {{"content", token.content},         {"lstrip", token.lstrip},
                                   {"normalized", token.normalized},   {"rstrip", token.rstrip},
                                   {"single_word", token.single_word}, {"special", token.special}};
  }
  if (!out.contains("tokenizer_class")) out["tokenizer_class"] = "PreTrainedTokenizerFast";
  write_tokenizer_file(directory / "tokenizer_config.json", out.dump(2) + '\n');
  if (!config.chat_template.empty() && !out.contains("chat_template"))
    write_tokenizer_file(directory / "chat_template.jinja", config.chat_template);
}

}  // namespace troupe::detail

#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <troupe/tokenizer.hpp>
#include <vector>

#include "added_tokens.hpp"

namespace troupe::detail {

/// What tokenizer_config.json, special_tokens_map.json, added_tokens.json and chat_template.jinja
/// say.
struct PretrainedConfig {
  nlohmann::ordered_json json =
      nlohmann::ordered_json::object();  ///< tokenizer_config.json, to be saved again
  std::string file;                      ///< its path, for messages
  SpecialTokens tokens;
  std::vector<AddedToken> added;  ///< of added_tokens_decoder and added_tokens.json, by id
  std::string tokenizer_class;
  std::string chat_template;
  std::optional<std::size_t> model_max_length;
  std::optional<bool> add_bos, add_eos, add_prefix_space, legacy;
  std::optional<bool> do_lower_case, strip_accents, tokenize_chinese_chars;
  bool truncate_left = false;
  bool clean_up_spaces = false;
};

/// Throws Failure{FileCorrupt} naming file and key; files that are not there are as empty ones.
[[nodiscard]] PretrainedConfig read_pretrained_config(const std::filesystem::path& directory);
/// Writes tokenizer_config.json with the tokens' roles as they are now, and chat_template.jinja
/// where it came from there.
void save_pretrained_config(const PretrainedConfig& config,
                            const std::map<std::int32_t, AddedToken>& added,
                            const std::filesystem::path& directory);

}  // namespace troupe::detail

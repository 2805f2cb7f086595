#pragma once

#include <memory>

#include "pretrained_config.hpp"

namespace troupe::detail {

/// A tokenizer from the text of a tokenizer.json. `file` names it in messages.
[[nodiscard]] std::unique_ptr<Tokenizer> make_json_tokenizer(std::string text,
                                                             const std::string& file,
                                                             PretrainedConfig config);

/// tokenizer.json's text for files of before it: vocab.txt, or vocab.json with merges.txt.
[[nodiscard]] std::string json_of_vocab_txt(const std::filesystem::path& vocab,
                                            const PretrainedConfig& config);
[[nodiscard]] std::string json_of_vocab_and_merges(const std::filesystem::path& vocab,
                                                   const std::filesystem::path& merges,
                                                   const PretrainedConfig& config);

}  // namespace troupe::detail

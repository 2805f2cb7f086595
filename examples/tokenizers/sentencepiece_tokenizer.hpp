#pragma once

#include <memory>

#include "pretrained_config.hpp"

namespace troupe::detail {

/// A tokenizer from the bytes of a tokenizer.model. `file` names it in messages.
[[nodiscard]] std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string bytes,
                                                                      const std::string& file,
                                                                      PretrainedConfig config);

}  // namespace troupe::detail

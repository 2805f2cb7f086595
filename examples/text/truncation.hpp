#pragma once

#include <cstddef>
#include <optional>
#include <troupe/tokenizer.hpp>
#include <utility>

namespace troupe::detail {

/// How many ids of each text stay, by the rules of Hugging Face's tokenizers.
/// @param second nothing when there is one text only.
/// @param max_length with the `num_special` tokens that are added; 0: no limit.
/// Throws Failure{InvalidArgument} as Tokenizer::encode says.
[[nodiscard]] std::pair<std::size_t, std::size_t> kept_lengths(std::size_t first,
                                                               std::optional<std::size_t> second,
                                                               std::size_t num_special,
                                                               std::size_t max_length,
                                                               Truncation how);

}  // namespace troupe::detail

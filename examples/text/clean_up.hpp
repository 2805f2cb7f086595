#pragma once

#include <string>
#include <string_view>

namespace troupe::detail {

/// An empty `from` is found nowhere.
void replace_all(std::string& text, std::string_view from, std::string_view to);

/// English spacing as transformers' clean_up_tokenization mends it; the WordPiece decoder of
/// tokenizers has one rule more.
void clean_up_spaces(std::string& text, bool do_not);

}  // namespace troupe::detail

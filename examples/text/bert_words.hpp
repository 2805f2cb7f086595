#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "bert_normalizer.hpp"

namespace troupe::detail {

enum class BertByte : std::uint8_t {
  Word,
  Space,
  Punctuation,
  Other
};  // Other: not ASCII, or a control character

[[nodiscard]] const std::array<BertByte, 256>& bert_bytes();

/// The words of `text` after BERT's cleaning and splitting. ASCII, most of most texts, is cut
/// directly: `plain(word, source)` gets a word whose characters stand at source, source + 1 … of
/// the text; the rest goes through `normalize`: `wide(chars, begin, end)` gets a word as code
/// points [begin, end) of `chars`.
/// @param first_source index of the text's first code point.
template <class Plain, class Wide>
void for_each_bert_word(std::string_view text, const NormalizerOptions& options,
                        std::int64_t first_source, Plain&& plain, Wide&& wide) {
  const auto& kinds = bert_bytes();
  const auto kind = [&](std::size_t i) { return kinds[static_cast<unsigned char>(text[i])]; };
  std::string lowered;
  auto source = first_source;  // of text[at]
  for (std::size_t at = 0; at < text.size();) {
    const auto begin = at;
    while (at < text.size() && kind(at) == BertByte::Word) ++at;
    if (at < text.size() && kind(at) == BertByte::Other) {
      // To the next ASCII white space: nothing in the cleaning reaches across that.
      while (at < text.size() && kind(at) != BertByte::Space) ++at;
      const auto part = text.substr(begin, at - begin);
      const auto chars = normalize(part, options, source);
      for (const auto& [from, to] : split_words(chars)) wide(chars, from, to);
      source += count_code_points(part);
      continue;
    }
    if (at > begin) {
      auto word = text.substr(begin, at - begin);
      if (options.lower_case) {
        lowered.assign(word);
        for (char& c : lowered) c = static_cast<char>(c + (c >= 'A' && c <= 'Z' ? 32 : 0));
        word = lowered;
      }
      plain(word, source);
    } else {
      if (kind(at) == BertByte::Punctuation) plain(text.substr(at, 1), source);
      ++at;
    }
    source += static_cast<std::int64_t>(at - begin);
  }
}

}  // namespace troupe::detail

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace troupe::detail {

/// A code point after normalisation, and where its source stands in the text (in code points).
struct SourcedChar {
  char32_t code = 0;
  std::int64_t source = 0;
};

struct NormalizerOptions {
  bool lower_case = true;
  bool strip_accents = true;
  bool tokenize_chinese_chars = true;
};

/// BERT's text cleaning as Hugging Face's `BertNormalizer` does it: control and format characters
/// dropped, white space made one kind, CJK ideographs set apart, then NFD without its accents, then
/// lower case. Bytes that are not UTF-8 count as one U+FFFD each, which is dropped.
/// @param first_source index of the text's first code point.
[[nodiscard]] std::vector<SourcedChar> normalize(std::string_view text,
                                                 const NormalizerOptions& options,
                                                 std::int64_t first_source = 0);

/// Words of normalised text as [begin, end) pairs: split at white space, each punctuation character
/// a word of its own.
[[nodiscard]] std::vector<std::pair<std::size_t, std::size_t>> split_words(
    const std::vector<SourcedChar>& text);

/// ASCII's punctuation, symbols included, and general category P.
[[nodiscard]] bool is_punctuation(std::int32_t code_point);

void append_utf8(std::string& out, char32_t code);
[[nodiscard]] std::int64_t count_code_points(std::string_view text) noexcept;

}  // namespace troupe::detail

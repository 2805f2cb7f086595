#include "bert_normalizer.hpp"

#include <unicode/uchar.h>
#include <unicode/unorm2.h>
#include <unicode/utf16.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <array>
#include <string>

#include "bert_words.hpp"

// The reference's character classes are tables of Unicode 8 (crate unicode_categories 0.1.1), so a
// character that came later is neither accent nor punctuation nor format character to it. The rules
// below were compared with tokenizers 0.23.3 on every code point; what is left differs only in
// lower case of letters newer than this ICU.

namespace troupe::detail {
namespace {

bool in_unicode_8(UChar32 c) {
  UVersionInfo version;
  u_charAge(c, version);
  return version[0] <= 8;
}

bool is_space(UChar32 c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  return u_hasBinaryProperty(c, UCHAR_WHITE_SPACE) != 0;
}

enum class Cleaned { Keep, Drop, Space };

Cleaned clean(UChar32 c) {
  if (c > 0x20 && c < 0x7F) return Cleaned::Keep;
  if (c == '\t' || c == '\n' || c == '\r') return Cleaned::Space;
  if (c == 0xFFFD) return Cleaned::Drop;
  const auto type = u_charType(c);
  const bool control = type == U_CONTROL_CHAR || type == U_PRIVATE_USE_CHAR ||
                       (type == U_FORMAT_CHAR && in_unicode_8(c));
  if (control) return Cleaned::Drop;
  return is_space(c) ? Cleaned::Space : Cleaned::Keep;
}

/// The ranges of the reference, which has 2B920 where BERT's own code has 2B820.
bool is_chinese(UChar32 c) {
  if (c < 0x3400) return false;
  return c <= 0x4DBF || (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
         (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

/// General category Mn in Unicode 8.
bool is_accent(UChar32 c) {
  if (c < 0x300) return false;
  if (c == 0x1734) return true;  // Mc since Unicode 14
  if (c == 0x1885 || c == 0x1886 || c == 0xA9BD || c == 0x111C9)
    return false;  // Mn since Unicode 9 to 11
  return u_charType(c) == U_NON_SPACING_MARK && in_unicode_8(c);
}

void append_decomposed(std::vector<SourcedChar>& out, UChar32 c, std::int64_t source) {
  static const UNormalizer2* const nfd = [] {
    UErrorCode error = U_ZERO_ERROR;
    return unorm2_getNFDInstance(&error);
  }();
  std::array<UChar, 32> units;  // the longest canonical decomposition has 4 code points
  UErrorCode error = U_ZERO_ERROR;
  const auto length =
      c < 0xC0 || !in_unicode_8(c)
          ? -1
          : unorm2_getDecomposition(nfd, c, units.data(), static_cast<int>(units.size()), &error);
  if (length < 0 || U_FAILURE(error)) {
    out.push_back({static_cast<char32_t>(c), source});
    return;
  }
  for (int i = 0; i < length;) {
    UChar32 part = 0;
    U16_NEXT(units.data(), i, length, part);
    out.push_back({static_cast<char32_t>(part), source});
  }
}

/// Canonical order: runs of combining characters sorted by class, equal classes left in place.
/// Sources stay where they are, as in the reference.
void reorder(std::vector<SourcedChar>& text) {
  const auto combining = [](const SourcedChar& c) {
    return c.code < 0x300 ? 0 : static_cast<int>(u_getCombiningClass(static_cast<UChar32>(c.code)));
  };
  for (auto at = text.begin(); at != text.end();) {
    const auto begin =
        std::find_if(at, text.end(), [&](const auto& c) { return combining(c) != 0; });
    at = std::find_if(begin, text.end(), [&](const auto& c) { return combining(c) == 0; });
    if (at - begin < 2) continue;
    std::vector<SourcedChar> run(begin, at);
    std::ranges::stable_sort(run, {}, combining);
    std::transform(run.begin(), run.end(), begin, begin, [](const auto& from, const auto& place) {
      return SourcedChar{from.code, place.source};
    });
  }
}

void lower(std::vector<SourcedChar>& text) {
  std::vector<SourcedChar> out;
  out.reserve(text.size());
  for (const auto& [code, source] : text) {
    if (code < 0x80) {
      out.push_back({code >= 'A' && code <= 'Z' ? code + 32 : code, source});
    } else if (code == 0x130) {  // the one letter whose lower case is two code points
      out.push_back({U'i', source});
      out.push_back({0x307, source});
    } else {
      out.push_back({static_cast<char32_t>(u_tolower(static_cast<UChar32>(code))), source});
    }
  }
  text = std::move(out);
}

}  // namespace

bool is_punctuation(std::int32_t c) {
  if (c < 0x80) {
    return (c > ' ' && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a') ||
           (c > 'z' && c < 0x7F);
  }
  if (c == 0x166D || c == 0x111C9) return true;  // symbol since Unicode 12, accent since 11
  return (U_GET_GC_MASK(c) & U_GC_P_MASK) != 0 && in_unicode_8(c);
}

std::vector<SourcedChar> normalize(std::string_view text, const NormalizerOptions& options,
                                   std::int64_t first_source) {
  std::vector<SourcedChar> out;
  out.reserve(text.size());
  auto source = first_source;
  for (std::size_t at = 0; at < text.size(); ++source) {
    UChar32 c = 0;
    U8_NEXT_OR_FFFD(text.data(), at, text.size(), c);
    const auto cleaned = clean(c);
    if (cleaned == Cleaned::Drop) continue;
    const bool apart = options.tokenize_chinese_chars && is_chinese(c);
    if (apart) out.push_back({U' ', source});
    if (cleaned == Cleaned::Space) {
      out.push_back({U' ', source});
    } else if (options.strip_accents) {
      append_decomposed(out, c, source);
    } else {
      out.push_back({static_cast<char32_t>(c), source});
    }
    if (apart) out.push_back({U' ', source});
  }
  if (options.strip_accents) {
    reorder(out);
    std::erase_if(out,
                  [](const SourcedChar& c) { return is_accent(static_cast<UChar32>(c.code)); });
  }
  if (options.lower_case) lower(out);
  return out;
}

std::vector<std::pair<std::size_t, std::size_t>> split_words(const std::vector<SourcedChar>& text) {
  std::vector<std::pair<std::size_t, std::size_t>> words;
  std::size_t begin = 0;
  const auto finish = [&](std::size_t end) {
    if (end > begin) words.emplace_back(begin, end);
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<UChar32>(text[i].code);
    const bool punctuation = is_punctuation(c);
    if (!punctuation && !is_space(c)) continue;
    finish(i);
    if (punctuation) words.emplace_back(i, i + 1);
    begin = i + 1;
  }
  finish(text.size());
  return words;
}

const std::array<BertByte, 256>& bert_bytes() {
  static const auto table = [] {
    std::array<BertByte, 256> out{};
    for (int c = 0; c < 256; ++c) {
      const bool other = c >= 0x7F || (c < 0x20 && c != '\t' && c != '\n' && c != '\r');
      out[static_cast<std::size_t>(c)] = other               ? BertByte::Other
                                         : c <= 0x20         ? BertByte::Space
                                         : is_punctuation(c) ? BertByte::Punctuation
                                                             : BertByte::Word;
    }
    return out;
  }();
  return table;
}

void append_utf8(std::string& out, char32_t code) {
  std::array<char, U8_MAX_LENGTH> bytes;
  std::size_t length = 0;
  U8_APPEND_UNSAFE(bytes.data(), length, static_cast<UChar32>(code));
  out.append(bytes.data(), length);
}

std::int64_t count_code_points(std::string_view text) noexcept {
  std::int64_t count = 0;
  for (std::size_t at = 0; at < text.size(); ++count) U8_FWD_1(text.data(), at, text.size());
  return count;
}

}  // namespace troupe::detail

#pragma once

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace troupe::detail {

enum class CharKind : std::uint8_t { Letter, Number, Space, Other };

[[nodiscard]] inline bool is_space(UChar32 c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  return u_hasBinaryProperty(c, UCHAR_WHITE_SPACE) != 0;
}

/// Letter: \p{L}, Number: \p{N}, Space: White_Space.
[[nodiscard]] CharKind kind_of_wide(UChar32 c);
[[nodiscard]] inline CharKind kind_of(UChar32 c) {
  if (c >= 0x80) return kind_of_wide(c);
  if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return CharKind::Letter;
  if (c >= '0' && c <= '9') return CharKind::Number;
  return is_space(c) ? CharKind::Space : CharKind::Other;
}

/// What \w matches in Rust's regular expressions.
[[nodiscard]] bool is_word_char(UChar32 c);

/// The code point at `at` of valid UTF-8, and `at` moved behind it.
[[nodiscard]] inline UChar32 next_char(std::string_view text, std::size_t& at) {
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < 0x80) {
    ++at;
    return first;
  }
  UChar32 c = 0;
  U8_NEXT_OR_FFFD(text.data(), at, text.size(), c);
  return c;
}
/// The code point that ends at `at`, and `at` moved to its begin.
[[nodiscard]] inline UChar32 previous_char(std::string_view text, std::size_t& at) {
  while (at > 0 && (static_cast<unsigned char>(text[--at]) & 0xC0) == 0x80) {
  }
  auto after = at;
  return next_char(text, after);
}

[[nodiscard]] bool is_ascii(std::string_view text) noexcept;
/// `text` when it is UTF-8; else a copy in `storage` with U+FFFD for each longest run of bytes that
/// is not.
[[nodiscard]] std::string_view valid_utf8(std::string_view text, std::string& storage);

/// GPT-2's spelling of bytes as printable characters: '!' to '~' and most of Latin-1 as they are,
/// the others from U+0100.
struct ByteAlphabet {
  std::array<std::string, 256> spelled;     ///< UTF-8 of each byte's character
  std::array<std::int16_t, 0x144> byte_of;  ///< by code point; -1: none
};
[[nodiscard]] const ByteAlphabet& byte_alphabet();

}  // namespace troupe::detail
